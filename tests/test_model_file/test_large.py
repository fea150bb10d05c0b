"""Models whose weights do not fit into one protobuf, in miniature: the limit is lowered."""

import weakref
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxdfq.evaluation import Session
from onnxdfq.model_file import handover, loading, save_model, saving, through_proto
from onnxdfq.model_file.loading import read_any_model
from onnxdfq.model_file.reference import with_outputs
from onnxdfq.model_file.runtime import reads_beside, session_options
from onnxdfq.model_file.tasks import limits_for, make_room
from onnxdfq.model_file.uncached import UncachedTensor
from onnxdfq.model_file.untrusted import bytes_of
from onnxdfq.sandbox import Limits

from .conftest import build, conv_net, noise, run, save_external, weight


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network of a few hundred bytes, which counts as large."""
    monkeypatch.setattr(saving, "INLINE_LIMIT", 100)
    for module in (loading, through_proto, handover):
        monkeypatch.setattr(module, "CARRIED_INLINE", 50)
    return save_external(conv_net(opset=21), tmp_path)


def test_nobody_keeps_what_was_read_once(large: Path) -> None:
    tensor = read_any_model(large).graph.initializers["w"].const_value
    assert isinstance(tensor, UncachedTensor)
    array = tensor.numpy()
    np.testing.assert_array_equal(array, weight(5, 3, 3, 3))
    assert tensor.tobytes() == array.tobytes() and tensor.raw is None
    np.testing.assert_array_equal(np.asarray(tensor, np.float64), array)
    gone = weakref.ref(array)
    del array
    assert gone() is None


def test_limits_count_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_external(conv_net(), tmp_path)
    with (tmp_path / "weights.bin").open("ab") as stream:
        stream.truncate(3 * 2**30)  # a hole
    assert limits_for(path).memory == Limits().memory
    applied: list[Limits] = []
    monkeypatch.setattr(Limits, "apply", lambda limits: applied.append(limits))
    make_room(path)
    assert bytes_of(path) > 3 * 2**30 and applied[-1].memory > 6 * 2**30


def test_a_large_network_runs_and_leaves(large: Path) -> None:
    x = noise(2, 3, 8, 8)
    session = Session(large, read_any_model(large))
    assert session.lean and session._session is None
    np.testing.assert_allclose(session.run(x)[0], run(large, x), rtol=1e-5, atol=1e-6)


def test_a_changed_large_network_runs_with_the_weights_of_its_file(large: Path) -> None:
    model = read_any_model(large)
    model.graph.outputs.append(model.graph.node("relu").outputs[0])
    found = Session(large, model).run(noise(2, 3, 8, 8))
    assert [array.shape for array in found] == [(2, 4), (2, 5, 8, 8)]


def test_more_outputs_of_a_file_whose_weights_lie_beside_it(large: Path) -> None:
    import onnxruntime

    made = with_outputs(large, ["relu_y"])
    assert made is not None and len(made) < large.stat().st_size + 100
    options = session_options()
    reads_beside(options, large)
    session = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    assert session.run(["relu_y"], {"x": noise(1, 3, 8, 8)})[0].shape == (1, 5, 8, 8)


def test_a_small_file_made_of_a_large_one_holds_its_weights(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, expected = noise(2, 3, 8, 8), run(large, noise(2, 3, 8, 8))
    model = read_any_model(large)
    monkeypatch.undo()
    save_model(model, tmp_path / "small.onnx")
    (tmp_path / "weights.bin").unlink()
    np.testing.assert_allclose(run(tmp_path / "small.onnx", x), expected, rtol=1e-5, atol=1e-6)
    assert isinstance(model.graph.initializers["w"].const_value, UncachedTensor), "the model itself stays as it is"


def test_int8_in_blocks_runs_where_integer_kernels_are_to_be_exact(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=16),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    weights = {"q": np.ones((32, 8), np.int8), "s": np.full((2, 8), 0.5, np.float32)}
    path = tmp_path / "blocks.onnx"
    onnx.save(build(nodes, weights, shape=("batch", 32), opset=21), path)
    session = Session(path, ir.load(path))
    assert not session.exact
    np.testing.assert_allclose(session.run(np.ones((1, 32), np.float32))[0], 16.0)
