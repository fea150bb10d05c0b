"""What the command line refuses: one sentence for every fault."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from .conftest import DIGITS, QUICK, Cli, folder


def change(path: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    proto = onnx.load(path)
    edit(proto)
    onnx.save(proto, path)
    return path


def test_not_onnx(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_text("hello")
    assert "is not an ONNX model" in refused("compress", tmp_path / "x.onnx")


def test_absent(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "there is no such file" in refused("compress", tmp_path / "x.onnx")


def test_truncated(refused: Callable[..., str], model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-1000])
    assert "is cut off" in refused("compress", model)


def test_an_operator_that_nothing_runs(refused: Callable[..., str], model: Path) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        (last,) = (node for node in proto.graph.node if proto.graph.output[0].name in node.output)
        last.output[0] = "before"
        output = proto.graph.output[0].name
        proto.graph.node.append(helper.make_node("Frobnicate", ["before"], [output], name="odd", domain="com.acme"))
        proto.opset_import.append(helper.make_opsetid("com.acme", 1))

    message = refused("compress", change(model, edit), *QUICK)
    assert "Frobnicate" in message and "ONNX Runtime does not run" in message and "--op-library" in message


def test_no_batch_norm(refused: Callable[..., str], tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 8, 8])
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), "f4"), "w")
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "x.onnx")
    message = refused("compress", tmp_path / "x.onnx", "--method", "dgh")
    assert "whether one was folded at export or the network never had any cannot be told" in message
    assert "onnxdfq.export" in message and "--calibration" in message


def test_weights_that_are_not_numbers(refused: Callable[..., str], model: Path) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        tensor = next(t for t in proto.graph.initializer if len(t.dims) == 4)
        array = numpy_helper.to_array(tensor).copy()
        array.flat[0] = np.nan
        tensor.CopyFrom(numpy_helper.from_array(array, "poisoned"))
        for node in proto.graph.node:
            if node.op_type == "Conv":
                node.input[1] = "poisoned"
                break

    assert "poisoned" in refused("compress", change(model, edit), *QUICK)


@pytest.mark.parametrize("location", ["absent.bin", "../outside.bin", "/etc/hostname", "link.bin"])
def test_external_data_missing_or_outside(refused: Callable[..., str], model: Path, location: str) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        tensor = next(t for t in proto.graph.initializer if len(t.dims) == 4)
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    (model.parent / "link.bin").symlink_to("/etc/hostname")
    (model.parent / "inner").mkdir()
    proto = onnx.load(model)
    edit(proto)
    path = model.parent / "inner" / "m.onnx" if location == "../outside.bin" else model
    path.write_bytes(proto.SerializeToString())
    (model.parent / "outside.bin").write_bytes(b"\0" * 4096)
    message = refused("compress", path, *QUICK)
    assert location in message and ("missing" if location == "absent.bin" else "outside") in message


def test_already_quantized(refused: Callable[..., str], cli: Cli, model: Path, tmp_path: Path) -> None:
    assert cli("compress", model, *QUICK, "-o", tmp_path / "q.onnx").exit_code == 0
    assert "quantized" in refused("compress", tmp_path / "q.onnx")


def test_unknown_input_shape(refused: Callable[..., str], cli: Cli, model: Path) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        for axis in (2, 3):
            proto.graph.input[0].type.tensor_type.shape.dim[axis].Clear()
        del proto.graph.value_info[:]

    message = refused("compress", change(model, edit), *QUICK)
    assert "--input-shape" in message
    assert cli("compress", model, *QUICK, "--input-shape", "1,1,8,8").exit_code == 0


def test_zero_size_input(refused: Callable[..., str], model: Path) -> None:
    def edit(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 0
        del proto.graph.value_info[:]

    assert "size 0" in refused("compress", change(model, edit), *QUICK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "4x8"], "--bits: '4x8' is not of the form w4a8"),
        (["--bits", "w1a8"], "weights take 2 to 8 bits"),
        (["--method", "dhg"], "Unknown method: 'dhg'. Did you mean 'dgh'?"),
        (["--target", "ot"], "Unknown target: 'ot'. Did you mean 'ort'?"),
        (["--effort", "quick"], "Unknown effort: 'quick'"),
        (["--device", "tpu"], "Unknown device: 'tpu'"),
        (["--images", "0"], "at least 1"),
        (["--seed", "-1"], "at least 0"),
        (["--output", "q.npz", "--save-images", "q.npz"], "both the model and the images"),
        (["--normalize", "mnist"], "--normalize 'mnist'"),
        (["--input-shape", "1,x"], "--input-shape '1,x'"),
        (["--calibration", "absent.npz"], "there is no such file"),
        (["--recipe", "absent.toml"], "The recipe absent.toml: there is no such file"),
    ],
)
def test_settings_that_cannot_be(refused: Callable[..., str], model: Path, arguments: list[str], message: str) -> None:
    assert message in refused("compress", model, *arguments)
    assert folder(model.parent) == {"digits.onnx"}


def test_output_exists(refused: Callable[..., str], cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_text("mine")
    for place in (tmp_path, tmp_path / ".."):
        said = refused("compress", model, *QUICK, "-o", place, "--target", "ort", "--target", "compact")
        assert "is a folder; give the name of a file" in said
    assert "--force" in refused("compress", model, *QUICK, "-o", tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_text() == "mine"
    assert cli("compress", model, *QUICK, "-o", tmp_path / "out.onnx", "--force").exit_code == 0


def test_the_input_is_never_the_output(refused: Callable[..., str], model: Path) -> None:
    before = model.read_bytes()
    assert "is the model itself" in refused("compress", model, *QUICK, "-o", model, "--force")
    assert model.read_bytes() == before


def test_data_of_the_user_is_never_replaced(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    data = Path(shutil.copy(DIGITS / "digits_test.npz", tmp_path / "mine.npz"))
    (tmp_path / "link.npz").symlink_to(data)
    before = data.read_bytes()
    for option, given, what in (
        ("-o", "--calibration", "the calibration data"),
        ("--save-images", "--evaluate", "the labelled data"),
    ):
        message = refused("compress", model, *QUICK, "--force", given, data, option, tmp_path / "link.npz")
        assert f"is {what}; give another name with {option}" in message
    assert data.read_bytes() == before


def test_a_folder_is_no_model(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (".", tmp_path):
        assert "is a folder; give an ordinary file" in refused("compress", path, *QUICK)


def test_output_folder_absent(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    assert "does not exist" in refused("compress", model, *QUICK, "-o", tmp_path / "no" / "out.onnx")


def test_output_folder_not_writable(
    refused: Callable[..., str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the tests may run as root, for whom every folder is writable: the system's answer is simulated
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK))
    assert "is not writable" in refused("compress", model, *QUICK, "-o", tmp_path / "out.onnx")


def test_disk_full(refused: Callable[..., str], model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "the disk is full" in refused("compress", model, *QUICK, code=1)
    assert folder(model.parent) == {"digits.onnx"}


def test_labels_that_do_not_fit(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros((2, 8, 8, 1), np.uint8), labels=np.array([0, 10]))
    assert "do not fit the classes" in refused("evaluate", model, tmp_path / "d.npz")
    assert "do not fit the classes" in refused("compress", model, *QUICK, "--evaluate", tmp_path / "d.npz")


def test_pickle_is_refused(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", images=np.array([{}, {}], dtype=object))
    assert "would need pickle" in refused("evaluate", model, tmp_path / "d.npz")
