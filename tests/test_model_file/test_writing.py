"""A reader sees the whole new file or the old one."""

import errno
import os
import resource
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from onnxdfq import signals
from onnxdfq.errors import (
    OutputError,
)
from onnxdfq.model_file import (
    atomic_write,
    save_model,
    saving,
    writing,
)
from onnxdfq.model_file.writing import make_folder, staging

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


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "work")
    make_folder(tmp_path / "work")
    assert (tmp_path / "work").is_dir()

    def full(path: Path, **_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OutputError, match="other cannot be written: the disk is full; nothing was written") as caught:
        make_folder(tmp_path / "other")
    assert caught.value.exit_code == 1


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
    monkeypatch.setattr(saving, "INLINE_LIMIT", limit)
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


# several files


def test_all_take_their_places_together(tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    model, plan = tmp_path / "q.onnx", tmp_path / "plans" / "q.toml"
    with staging() as staged:
        for place in (model, plan):
            with staged.file(place) as temporary:
                temporary.write_text(place.name)
        assert staged.where(plan).read_text() == "q.toml"
        assert not model.exists() and not plan.exists()
    assert (model.read_text(), plan.read_text()) == ("q.onnx", "q.toml")
    assert names(tmp_path) == {"q.onnx", "plans", "plans/q.toml"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OutputError("no"), MemoryError()])
def test_none_takes_its_place_where_the_run_fails(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "old").write_text("old")
    with pytest.raises(type(error)), staging(force=True) as staged:
        for name in ("old", "new"):
            with staged.file(tmp_path / name) as temporary:
                temporary.write_text("new")
        raise error
    assert (tmp_path / "old").read_text() == "old"
    assert names(tmp_path) == {"old"}


@pytest.mark.parametrize("links", [True, False])
def test_what_was_there_is_there_again_where_one_place_cannot_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    places = [tmp_path / name for name in ("old", "link", "new", "last")]
    places[0].write_text("old")
    places[1].symlink_to("elsewhere")
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if target == places[-1]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(self, target)

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "replace", refuse)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    sentence = r"last cannot be written: .*; nothing was written"
    with pytest.raises(OutputError, match=sentence), staging(force=True) as staged:
        for place in places:
            with staged.file(place) as temporary:
                temporary.write_text("new")
    assert places[0].read_text() == "old" and places[1].readlink() == Path("elsewhere")
    assert names(tmp_path) == {"old", "link"}


def test_a_place_that_is_taken_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="b exists; give another name"), staging() as staged:
        for name in ("a", "b"):
            with staged.file(tmp_path / name) as temporary:
                temporary.write_text("new")
        (tmp_path / "b").write_text("theirs")
    assert (tmp_path / "b").read_text() == "theirs"
    assert names(tmp_path) == {"b"}


@pytest.mark.parametrize("other", ["q.onnx", "link/q.onnx"])
def test_two_files_of_one_place(tmp_path: Path, other: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="cannot take two files of one run"), staging(force=True) as staged:
        for place in (tmp_path / "q.onnx", tmp_path / other):
            with staged.file(place):
                pass
    assert names(tmp_path) == {"link"}


def test_a_file_of_weights_never_lies_beside_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "INLINE_LIMIT", 100)
    model, out = small(tmp_path), tmp_path / "out.onnx"
    out.write_text("old model")
    (tmp_path / "out.onnx.data").write_text("old weights")
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        assert not out.exists()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    save_model(model, out, force=True)
    assert onnx.load(out).graph.initializer
    assert names(tmp_path) == {"source.onnx", "out.onnx", "out.onnx.data"}


def test_an_interruption_waits_for_the_last_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        signal.raise_signal(signal.SIGINT)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    monkeypatch.setattr(signals, "written", [])
    monkeypatch.setattr(writing, "written", signals.written)
    with pytest.raises(KeyboardInterrupt), staging() as staged:
        for name in ("a", "b"):
            with staged.file(tmp_path / name) as temporary:
                temporary.write_text(name)
    assert names(tmp_path) == {"a", "b"}
    assert signals.written == [tmp_path / "a", tmp_path / "b"]


def test_an_interruption_that_a_library_swallowed_comes_before_the_first_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "came", [signal.SIGTERM])
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "out") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == set()


STAGE = """
import sys, time
from pathlib import Path
from typing import Any
from onnxdfq.model_file.writing import staging
from onnxdfq.signals import raise_ending
raise_ending()
with staging(force=True) as staged, staged.file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("half", flush=True)
    time.sleep(60)
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    def hear() -> None:  # a job in the background is started deaf to Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    outs: dict[signal.Signals, Path] = {}
    with ExitStack() as stack:
        started = []
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            outs[number] = tmp_path / number.name / "out.onnx"
            outs[number].parent.mkdir()
            outs[number].write_text("old")
            command = [sys.executable, "-c", STAGE, str(outs[number])]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            started.append((number, stack.enter_context(subprocess.Popen(command, preexec_fn=hear, **pipes))))
        for number, process in started:
            assert process.stdout.readline() == b"half\n"
            process.send_signal(number)
    for number, out in outs.items():
        assert out.read_text() == "old"
        assert (len(names(out.parent)) > 1) == (number == signal.SIGKILL)
        with atomic_write(out, force=True) as temporary:
            temporary.write_text("new")
        assert out.read_text() == "new"
        assert names(out.parent) == {"out.onnx"}


def names(folder: Path) -> set[str]:
    return {str(entry.relative_to(folder)) for entry in folder.rglob("*")}


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "00000.png").write_text("old")

    def write() -> None:
        with staging(force=True) as staged:
            with staged.folder(tmp_path / "shown") as folder:
                (folder / "00000.png").write_text("new")
            with staged.file(tmp_path / "last") as file:
                file.write_text("last")

    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if Path(target).name == "last":
            raise OSError(errno.EIO, "broken")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OutputError, match="broken"):
        write()
    assert (tmp_path / "shown" / "00000.png").read_text() == "old"
    monkeypatch.undo()
    write()
    assert (tmp_path / "shown" / "00000.png").read_text() == "new"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["last", "shown"]
