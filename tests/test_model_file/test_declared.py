"""The boundary of a file: what was declared comes back in what is written, and holds there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import onnxdfq
from onnxdfq.errors import InputError, ShapeError
from onnxdfq.model_file import load_model
from onnxdfq.model_file.inputs import batch_of

from ..slow import slow
from .conftest import build, run, saved, weight

Dims = list[int | str]


def dims(values: Sequence[onnx.ValueInfoProto]) -> list[Dims]:
    """Sizes, names of open ones, "?" for those without a name."""
    shapes = [value.type.tensor_type.shape.dim for value in values]
    return [[dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in shape] for shape in shapes]


def compressed(path: Path, **settings: Any) -> onnx.ModelProto:
    """Written by noise; held to strict shape inference."""
    given = {"method": "noise", "images": 8, "normalize": "none"} | settings
    result = onnxdfq.compress(path, output=path.parent / "q.onnx", force=True, **given)
    assert result.path is not None
    proto = onnx.load(result.path)
    onnx.shape_inference.infer_shapes(proto, strict_mode=True, check_type=True)
    return proto


def fully_convolutional(shape: Sequence[Any], output: Sequence[Any] | None = None) -> onnx.ModelProto:
    """conv, relu, conv of stride 2: any height and width."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("Conv", ["relu", "v"], ["y"], name="conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
    ]
    return build(nodes, {"w": weight(8, 3, 3, 3), "v": weight(4, 8, 3, 3, seed=1)}, shape=shape, output=output)


def baked(shape: Sequence[Any]) -> onnx.ModelProto:
    """A layer on 192 numbers: 8 by 8 pixels and no other size."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["conv"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "m"], ["y"], name="matmul"),
    ]
    weights = {"w": weight(3, 3, 3, 3), "m": weight(192, 4)}
    return build(nodes, weights, shape=shape, output=[shape[0], 4])


def sqnr(found: np.ndarray, expected: np.ndarray) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum()))


@pytest.mark.parametrize(
    ("shape", "dynamic", "inputs", "outputs"),
    [
        ([1, 3, 8, 8], False, [1, 3, 8, 8], [1, 4, 4, 4]),
        (["N", 3, 8, 8], False, ["N", 3, 8, 8], ["N", 4, 4, 4]),
        slow((["N", 3, 8, 8], True, ["N", 3, 8, 8], ["N", 4, 4, 4])),
        ([1, 3, 8, 8], True, ["batch", 3, 8, 8], ["batch", 4, 4, 4]),
        slow(([2, 3, 8, 8], False, [2, 3, 8, 8], [2, 4, 4, 4])),
    ],
)
def test_the_batch_at_both_ends(tmp_path: Path, shape: list[Any], dynamic: bool, inputs: Dims, outputs: Dims) -> None:
    proto = compressed(saved(fully_convolutional(shape, [shape[0], 4, 4, 4]), tmp_path), dynamic_batch=dynamic)
    assert dims(proto.graph.input) == [inputs]
    assert dims(proto.graph.output) == [outputs]
    for count in [inputs[0]] if isinstance(inputs[0], int) else [1, 3]:
        x = np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)
        assert run(proto, x).shape == (count, 4, 4, 4)


@pytest.mark.parametrize("shape", [["N", 3, "h", "w"], slow([1, 3, "h", "w"]), slow([1, 3, None, 8]), ["N", 3, -1, -1]])
def test_open_sizes_stay_open_and_run(tmp_path: Path, shape: list[Any]) -> None:
    path = saved(fully_convolutional(shape), tmp_path)
    proto = compressed(path, input_shape={"x": (1, 3, 16, 8)})
    (found,) = dims(proto.graph.input)
    for was, now in zip(shape, found, strict=True):
        assert was == now or (was in (None, -1) and isinstance(now, str))
    assert [isinstance(dim, str) for dim in dims(proto.graph.output)[0][2:]] == [
        not isinstance(size, int) or size < 0 for size in shape[2:]
    ]
    for height in (16, 24):
        width = 8 if shape[3] == 8 else 12
        x = np.random.default_rng(0).random((1, 3, height, width), np.float32)
        found_y, expected = run(proto, x), run(path, x)
        assert found_y.shape == expected.shape
        assert sqnr(found_y, expected) > 25


def test_sizes_that_the_graph_holds_become_numbers(tmp_path: Path) -> None:
    proto = compressed(saved(baked(["N", 3, "h", "w"]), tmp_path), input_shape={"x": (1, 3, 8, 8)})
    assert dims(proto.graph.input) == [["N", 3, 8, 8]]
    assert dims(proto.graph.output) == [["N", 4]]


def test_sizes_that_the_graph_holds_become_numbers_at_a_fixed_batch(tmp_path: Path) -> None:
    proto = compressed(saved(baked([1, 3, "h", "w"]), tmp_path), input_shape={"x": (1, 3, 8, 8)})
    assert dims(proto.graph.input) == [[1, 3, 8, 8]]
    assert dims(proto.graph.output) == [[1, 4]]


@pytest.mark.parametrize(
    ("target", "inputs"),
    [
        ("qnn", [[1, 3, 16, 16]]),
        ("tflite", [[1, 3, 16, 16]]),
        ("vitisai", [[1, 3, 16, 16]]),
        ("ort", [["N", 3, "h", "w"]]),
    ],
)
def test_targets_that_take_numbers_alone(tmp_path: Path, target: str, inputs: list[Dims]) -> None:
    path = saved(fully_convolutional(["N", 3, "h", "w"]), tmp_path)
    proto = compressed(path, input_shape={"x": (1, 3, 16, 16)}, target=target)
    assert dims(proto.graph.input) == inputs
    if target != "ort":
        assert dims(proto.graph.output) == [[1, 4, 8, 8]]


def test_several_targets_each_by_its_own_rule(tmp_path: Path) -> None:
    path = saved(fully_convolutional(["N", 3, "h", "w"]), tmp_path)
    result = onnxdfq.compress(
        path, method="noise", images=8, normalize="none", target=["qnn", "ort"], input_shape={"x": (1, 3, 16, 16)}
    )
    found = {name: dims(onnx.load(file.path).graph.input)[0] for name, file in result.targets.items() if file.path}
    assert found == {"qnn": [1, 3, 16, 16], "ort": ["N", 3, "h", "w"]}


def test_a_batch_that_cannot_be_freed(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], name="conv"),
        helper.make_node("Concat", ["conv", "token"], ["y"], name="concat", axis=1),
    ]
    weights = {"w": weight(2, 3, 1, 1), "token": weight(1, 1, 8, 8)}
    path = saved(build(nodes, weights, shape=(1, 3, 8, 8), output=(1, 3, 8, 8)), tmp_path)
    with pytest.raises(InputError, match=r"computes something else at other batches than 1; leave --dynamic-batch out"):
        compressed(path, dynamic_batch=True)
    assert dims(compressed(path).graph.input) == [[1, 3, 8, 8]]


def sequence_first() -> onnx.ModelProto:
    """(5, N, 6) with states (1, N, 4), as torch writes an LSTM, and a layer behind it."""
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [5, "N", 6]), ("h", [1, "N", 4]), ("c", [1, "N", 4]))
    ]
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "", "", "h", "c"], ["all", "last"], name="lstm", hidden_size=4),
        helper.make_node("Squeeze", ["all", "one"], ["flat"], name="squeeze"),
        helper.make_node("MatMul", ["flat", "m"], ["y"], name="matmul"),
    ]
    weights = {"w": weight(1, 16, 6), "r": weight(1, 16, 4), "m": weight(4, 3), "one": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "graph",
        infos,
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, "N", 3]),
            helper.make_tensor_value_info("last", TensorProto.FLOAT, [1, "N", 4]),
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_batch_behind_the_sequence(tmp_path: Path) -> None:
    path = saved(sequence_first(), tmp_path)
    proto = compressed(path, method="noise")
    assert dims(proto.graph.input) == [[5, "N", 6], [1, "N", 4], [1, "N", 4]]
    assert dims(proto.graph.output) == [[5, "N", 3], [1, "N", 4]]
    random = np.random.default_rng(0)
    feeds = {"h": random.standard_normal((1, 3, 4)), "c": random.standard_normal((1, 3, 4))}
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    x = random.standard_normal((5, 3, 6)).astype(np.float32)
    assert sqnr(run(proto, x, **feeds), run(path, x, **feeds)) > 20


def test_inputs_that_share_a_fixed_batch(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], name="conv"),
        helper.make_node("GlobalAveragePool", ["conv"], ["pool"], name="pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], name="flat"),
        helper.make_node("Concat", ["flat", "z"], ["both"], name="both", axis=1),
        helper.make_node("Gemm", ["both", "g"], ["gemm"], name="gemm"),
        helper.make_node("Mul", ["gemm", "scale"], ["y"], name="scaled"),
    ]
    more = [
        helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 2]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
    ]
    weights = {"w": weight(4, 3, 3, 3), "g": weight(6, 5)}
    path = saved(build(nodes, weights, shape=(1, 3, 8, 8), output=(1, 5), more_inputs=more), tmp_path)
    proto = compressed(path)
    assert dims(proto.graph.input) == [[1, 3, 8, 8], [1, 2], []]
    assert dims(proto.graph.output) == [[1, 5]]
    free = compressed(path, dynamic_batch=True)
    assert dims(free.graph.input) == [["batch", 3, 8, 8], ["batch", 2], []]
    assert dims(free.graph.output) == [["batch", 5]]
    random = np.random.default_rng(0)
    x, z = random.random((3, 3, 8, 8), np.float32), random.standard_normal((3, 2), np.float32)
    expected = [run(path, x[at : at + 1], z=z[at : at + 1], scale=np.array(1, np.float32)) for at in range(3)]
    session = onnxruntime.InferenceSession(free.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x, "z": z, "scale": np.array(1, np.float32)})
    assert sqnr(found, np.concatenate(expected)) > 25


def looped(output: Sequence[Any] | None) -> onnx.ModelProto:
    """A layer three times over: inference tells nothing of the shape that a Loop has in the end."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["on"], ["on2"]),
            helper.make_node("Conv", ["z", "w"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["conv"], ["z2"], name="relu"),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("z2", TensorProto.FLOAT, None),
        ],
    )
    node = helper.make_node("Loop", ["count", "yes", "x"], ["y"], name="loop", body=body)
    weights = {"w": weight(3, 3, 3, 3), "count": np.array(3), "yes": np.array(True)}
    return build([node], weights, shape=(1, 3, 8, 8), output=output, opset=21)


@pytest.mark.parametrize(("output", "free"), [(None, None), ((1, 3, 8, 8), ["?", "?", "?", "?"])])
def test_an_output_whose_shape_nothing_tells_is_written_as_it_was(
    tmp_path: Path, output: Sequence[int] | None, free: Dims | None
) -> None:
    path = saved(looped(output), tmp_path)
    for dynamic, expected in ((False, output and list(output)), (True, free)):
        written = compressed(path, dynamic_batch=dynamic).graph.output[0]
        assert written.type.tensor_type.HasField("shape") == (expected is not None)
        assert expected is None or dims([written]) == [expected]


def at_one_alone(gain: Sequence[Any]) -> onnx.ModelProto:
    """The batch is declared free, and yet the samples of one input meet the channels of the other."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv"], name="conv"),
        helper.make_node("Mul", ["conv", "gain"], ["y"], name="mul"),
    ]
    more = [helper.make_tensor_value_info("gain", TensorProto.FLOAT, gain)]
    return build(nodes, {"w": weight(4, 3, 3, 3)}, shape=("batch", 3, 8, 8), more_inputs=more, opset=21)


def test_a_batch_that_runs_at_one_size_alone_is_that_size(tmp_path: Path) -> None:
    path = saved(at_one_alone(["batch", 1, 1]), tmp_path)
    assert batch_of(load_model(path)) == 1
    assert dims(compressed(path).graph.input) == [["batch", 3, 8, 8], ["batch", 1, 1]]
    with pytest.raises(ShapeError, match="computes with 1 at a time only"):
        load_model(saved(at_one_alone(["batch"]), tmp_path))
