"""A reader sees the whole new file or the old one."""

import errno
import os
import resource
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from onnxdfq.errors import (
    OutputError,
)
from onnxdfq.model_file import (
    atomic_write,
    save_model,
    writing,
)

from .conftest import small


def test_saved_models_carry_shapes(tmp_path: Path) -> None:
    model = small(tmp_path)
    for node in model.graph:
        for value in node.outputs:
            value.shape = None if not value.is_graph_output() else value.shape
    save_model(model, tmp_path / "out.onnx")
    proto = onnx.load(tmp_path / "out.onnx")
    shapes = {
        info.name: [dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in proto.graph.value_info
    }
    assert shapes["conv_y"] == ["batch", 5, 8, 8]
    assert shapes["pool_y"] == ["batch", 5, 1, 1]


def test_an_invalid_model_is_not_written(tmp_path: Path) -> None:
    model = small(tmp_path)
    model.graph.node("conv").attributes["pads"] = ir.AttrInt64s("pads", [1])
    with pytest.raises(OutputError, match="was not written, because the model is not valid ONNX") as caught:
        save_model(model, tmp_path / "out.onnx")
    assert caught.value.exit_code == 1
    assert [file.name for file in tmp_path.iterdir()] == ["source.onnx"]


def test_existing_files_are_kept_without_force(tmp_path: Path) -> None:
    model, out = small(tmp_path), tmp_path / "out.onnx"
    out.write_text("mine")
    with pytest.raises(OutputError, match=r"exists; .*--force to replace it") as caught:
        save_model(model, out)
    assert caught.value.exit_code == 2
    assert out.read_text() == "mine"
    save_model(model, out, force=True)
    assert onnx.load(out).graph.node


@pytest.mark.parametrize(
    ("target", "message"), [("absent/out.onnx", "does not exist; create it first"), ("folder", "is a folder")]
)
def test_paths_that_cannot_be_written(tmp_path: Path, target: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=message) as caught:
        save_model(small(tmp_path), tmp_path / target, force=True)
    assert caught.value.exit_code == 2


def test_a_device_is_never_replaced() -> None:
    with pytest.raises(OutputError, match="is not an ordinary file"), atomic_write(Path(os.devnull), force=True):
        raise AssertionError("the block must not run")


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, model = tmp_path / "locked", small(tmp_path)
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):  # the superuser writes anywhere

        def refuse(*_: object) -> int:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match=r"not writable|Permission denied; choose another folder") as caught:
        save_model(model, folder / "out.onnx")
    assert caught.value.exit_code == 2


def test_disk_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(tmp_path)

    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="the disk is full; nothing was written") as caught:
        save_model(model, tmp_path / "out.onnx")
    assert caught.value.exit_code == 1
    assert [file.name for file in tmp_path.iterdir()] == ["source.onnx"]


@pytest.mark.parametrize("limit", [2**40, 100], ids=["inline", "external"])
def test_a_real_limit_on_file_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """The kernel itself stops the writing half-way."""
    monkeypatch.setattr(writing, "INLINE_LIMIT", limit)
    model = small(tmp_path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, old[1]))
    try:
        with pytest.raises(OutputError) as caught:
            save_model(model, tmp_path / "out.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert caught.value.exit_code == 1
    assert [file.name for file in tmp_path.iterdir()] == ["source.onnx"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "images.npz"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path, force=True) as temporary:
        assert temporary.suffix == ".npz"
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["images.npz"]


def test_a_finished_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with atomic_write(path) as temporary:
        temporary.write_text("{}")
        assert not path.exists()
    assert path.read_text() == "{}"
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
