"""`compress` on graphs written by hand: what exporters do not write, but files hold."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxdfq
from onnxdfq.errors import InputError
from onnxdfq.evaluation.evaluation import Session, evaluate
from onnxdfq.images.dataset import Dataset
from onnxdfq.recipe.plan_file import read_plan
from onnxdfq.report.linting import lint

from ..slow import all_but, slow
from .conftest import Level, compressed, run


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    outputs: dict[str, list[int | str]],
    inputs: dict[str, list[int | str]] | None = None,
) -> Path:
    def declared(values: dict[str, list[int | str]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]

    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", declared(inputs or {"x": ["N", 3, 8, 8]}), declared(outputs), constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    fan_in = np.prod(shape[1:]) if len(shape) > 1 else 10
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(fan_in)).astype(np.float32)


def conv(source: str, kernel: str, target: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, kernel], [target], **{"pads": [1, 1, 1, 1]} | attributes)


def test_an_input_that_is_an_output_too(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    shapes: dict[str, list[int | str]] = {"y": ["N", 8, 8, 8], "x": ["N", 3, 8, 8]}
    write(path, [conv("x", "w", "y")], {"w": weight(8, 3, 3, 3)}, outputs=shapes)
    assert compressed(path, tmp_path)["QLinearConv"] == 1


def test_a_weight_that_is_an_output_too(tmp_path: Path) -> None:
    path, kernel = tmp_path / "m.onnx", weight(8, 3, 3, 3)
    write(path, [conv("x", "w", "y")], {"w": kernel}, outputs={"y": ["N", 8, 8, 8], "w": [8, 3, 3, 3]})
    assert compressed(path, tmp_path)["QLinearConv"] == 1
    found = run(tmp_path / "q.onnx", {"x": np.zeros((1, 3, 8, 8), np.float32)}, Level.ORT_ENABLE_ALL)
    np.testing.assert_array_equal(found[1], kernel)


def test_one_weight_of_two_convolutions_and_names_that_clash(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [
        conv("x", "in", "x_quantized"),
        helper.make_node("Relu", ["x_quantized"], ["x dequantized/0"]),
        conv("x dequantized/0", "w.scale", "y_float"),
        conv("y_float", "w.scale", "y_1"),
        helper.make_node("Add", ["y_1", "x dequantized/0"], ["y"]),
    ]
    weights = {"in": weight(8, 3, 3, 3), "w.scale": weight(8, 8, 3, 3)}
    write(path, nodes, weights, outputs={"y": ["N", 8, 8, 8]})
    assert compressed(path, tmp_path)["QLinearConv"] == 3


@pytest.mark.parametrize("size", [16, 13, 11])  # by factors that float32 holds, and by one that it does not
def test_a_resize_to_sizes_of_numbers(size: int, tmp_path: Path) -> None:
    """Where only axes with a new size were named, ONNX Runtime did not load the file."""
    path = tmp_path / "m.onnx"
    nodes = [
        conv("x", "w", "a"),
        helper.make_node("Resize", ["a", "", "", "sizes"], ["b"], mode="nearest"),
        conv("b", "v", "y"),
    ]
    weights = {"w": weight(4, 3, 3, 3), "v": weight(5, 4, 3, 3), "sizes": np.array([1, 4, size, 12])}
    write(path, nodes, weights, inputs={"x": [1, 3, 8, 6]}, outputs={"y": [1, 5, size, 12]})
    assert compressed(path, tmp_path)["QLinearConv"] == 2
    (resize,) = (node for node in onnx.load(tmp_path / "q.onnx").graph.node if node.op_type == "Resize")
    assert not any(attribute.name == "axes" for attribute in resize.attribute)


def test_two_nodes_of_one_name(tmp_path: Path) -> None:
    """onnx's checker lets it pass, ONNX Runtime refuses it."""
    path = tmp_path / "m.onnx"
    nodes = [conv("x", "w", "a", name="conv"), conv("a", "v", "y", name="conv")]
    write(path, nodes, {"w": weight(8, 3, 3, 3), "v": weight(8, 8, 3, 3)}, outputs={"y": ["N", 8, 8, 8]})
    assert compressed(path, tmp_path)["QLinearConv"] == 2


@pytest.mark.parametrize("bits", ["w8a8", "w4a4", "w8a16"])
def test_clips_whose_bounds_lie_between_two_steps(bits: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [
        conv("x", "w", "a"), helper.make_node("Clip", ["a", "", "0.6"], ["b"]),
        conv("b", "v", "c"), helper.make_node("Clip", ["c", "-1/3", "1/3"], ["d"]),
        conv("d", "v", "e"), helper.make_node("Clip", ["e", "0.1", "0.6"], ["f"]),
        helper.make_node("Clip", ["f", "0", "0.3"], ["y"]),
    ]  # fmt: skip
    bounds = {"0.6": 0.6, "-1/3": -1 / 3, "1/3": 1 / 3, "0.1": 0.1, "0": 0.0, "0.3": 0.3}
    weights = {"w": weight(8, 3, 3, 3), "v": weight(8, 8, 3, 3)} | {
        name: np.float32(bound) for name, bound in bounds.items()
    }
    write(path, nodes, weights, outputs={"y": ["N", 8, 8, 8]})
    found = compressed(path, tmp_path, sqnr=3.0, bits=bits)
    assert found["QLinearConv"] == (0 if bits == "w8a16" else 3)


def test_between_a_clip_and_its_readers_every_kernel_is_integer(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [
        conv("x", "w", "a"), helper.make_node("Clip", ["a", "0", "0.6"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        conv("p", "v", "c"), helper.make_node("Clip", ["c", "0.1", "0.6"], ["d"]),
        helper.make_node("Pad", ["d", "pads"], ["e"]), conv("e", "v", "y", pads=[0, 0, 0, 0]),
    ]  # fmt: skip
    weights = {"w": weight(8, 3, 3, 3), "v": weight(8, 8, 3, 3), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    weights |= {"0": np.float32(0), "0.1": np.float32(0.1), "0.6": np.float32(0.6)}
    write(path, nodes, weights, outputs={"y": ["N", 8, 4, 4]})
    found = compressed(path, tmp_path)
    assert (found["QLinearConv"], found["Conv"], found["FusedConv"]) == (3, 0, 0)


def test_gemms_with_factors_and_biases_of_any_form(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "row"], ["a"]),
        helper.make_node("Gemm", ["a", "v", "bias"], ["b"], transB=1, alpha=0.5, beta=2.0),
        helper.make_node("Gemm", ["b", "v", "scalar"], ["y"]),
    ]
    weights = {
        "w": weight(192, 8),
        "v": weight(8, 8),
        "row": weight(1, 8),
        "bias": weight(8),
        "scalar": np.float32(0.3),
    }
    write(path, nodes, weights, outputs={"y": ["N", 8]})
    assert compressed(path, tmp_path)["QGemm"] == 3


def test_channels_last_at_the_door(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["a"], auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 2, 3, 1]),
        helper.make_node("ReduceMean", ["c", "axes"], ["d"], keepdims=0),
        helper.make_node("MatMul", ["d", "v"], ["e"]),
        helper.make_node("Add", ["e", "bias"], ["y"]),
    ]
    weights = {"w": weight(8, 3, 3, 3), "v": weight(8, 10), "bias": weight(10), "axes": np.array([1, 2])}
    write(path, nodes, weights, inputs={"x": ["N", 8, 8, 3]}, outputs={"y": ["N", 10]})
    found = compressed(path, tmp_path)
    assert found["QLinearConv"] == found["QGemm"] == 1


def test_a_fixed_batch_that_the_number_of_images_is_no_multiple_of(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [
        conv("x", "w", "a"),
        helper.make_node("Reshape", ["a", "tied"], ["b"]),
        conv("b", "v", "c"),
        helper.make_node("Reshape", ["c", "back"], ["y"]),
    ]
    weights = {"w": weight(8, 3, 3, 3), "v": weight(32, 32, 3, 3), "tied": np.array([1, 32, 8, 8])}
    weights["back"] = np.array([4, 8, 8, 8])
    write(path, nodes, weights, inputs={"x": [4, 3, 8, 8]}, outputs={"y": [4, 8, 8, 8]})
    result = onnxdfq.compress(path, method="noise", images=10)
    assert result.path is not None and result.metrics["images"] == 10
    assert result.metrics["sqnr_db_images"] is not None and result.metrics["sqnr_db_images"] > 15


def test_a_bias_far_above_its_weights_does_not_overflow(tmp_path: Path) -> None:
    """A dead channel, as BatchNormalization with a gamma of nearly zero leaves it: runtimes hold biases in 32 bits."""
    path, kernel = tmp_path / "m.onnx", weight(8, 3, 3, 3)
    kernel[:4] *= 1e-8
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])]
    weights = {"w": kernel, "b": np.array([300, -300, 200, 100, 0.1, 0.2, 0.3, 0.4], np.float32)}
    write(path, nodes, weights, outputs={"y": ["N", 8, 8, 8]})
    for scheme in ("power-of-two", "free"):
        assert compressed(path, tmp_path, scheme=scheme, sqnr=30)["QLinearConv"] == 1


def test_an_output_without_axes(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [conv("x", "w", "y"), helper.make_node("ReduceMean", ["y"], ["mean"], keepdims=0)]
    write(path, nodes, {"w": weight(8, 3, 3, 3)}, outputs={"y": ["N", 8, 8, 8], "mean": []})
    assert compressed(path, tmp_path)["QLinearConv"] == 1


def test_outputs_whose_number_of_rows_depends_on_the_image(tmp_path: Path) -> None:
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path, threshold in zip(paths, (0.0, 0.5), strict=True):
        nodes = [
            helper.make_node("Greater", ["x", "threshold"], ["mask"]),
            helper.make_node("Compress", ["x", "first"], ["y"], axis=1),
            helper.make_node("NonZero", ["mask"], ["where"]),
            helper.make_node("Cast", ["where"], ["rows"], to=TensorProto.FLOAT),
        ]
        weights = {"threshold": np.float32(threshold), "first": np.array([True, False, False])}
        write(path, nodes, weights, outputs={"y": ["N", 1, 8, 8], "rows": [4, "count"]})
    images = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    found = evaluate(Session(paths[0]), Dataset(images=images), against=Session(paths[1]))
    assert (found.count, found.agreement, found.sqnr_db) == (4, None, None)  # (N, 1, 8, 8) holds no classes


SCALED = [
    helper.make_node("Sub", ["x", "mean"], ["centred"]),
    helper.make_node("Div", ["centred", "deviation"], ["unit"]),
    conv("unit", "w", "a"),
    helper.make_node("Relu", ["a"], ["r"]),
    helper.make_node("Mul", ["r", "gains"], ["m"]),
    helper.make_node("Add", ["m", "offset"], ["s"]),
    helper.make_node("MaxPool", ["s"], ["y"], kernel_shape=[2, 2]),
]
CONSTANTS = {
    "mean": np.array([0.485, 0.456, 0.406], np.float32).reshape(3, 1, 1),
    "deviation": np.array([0.229, 0.224, 0.225], np.float32).reshape(3, 1, 1),
    "w": weight(8, 3, 3, 3),
    "gains": np.linspace(-1, 2, 8, dtype=np.float32).reshape(8, 1, 1),
    "offset": np.array(0.3, np.float32),
}


@pytest.mark.parametrize("scheme", ["power-of-two", "free"])
def test_constants_of_sums_and_products_are_integers(tmp_path: Path, scheme: str) -> None:
    path = write(tmp_path / "m.onnx", SCALED, CONSTANTS, outputs={"y": ["N", 8, 7, 7]})
    kinds = compressed(path, tmp_path, sqnr=25.0, scheme=scheme)
    assert kinds["QLinearAdd"] == 2  # the mean stays in front of the padding; the deviation went into the weights
    assert kinds["QLinearMul"] == kinds["QLinearConv"] == 1
    assert not {"Add", "Mul", "Sub", "Div"} & set(kinds)


@pytest.mark.parametrize(
    "target", all_but(["ort", "qnn", "vitisai", "tflite", "compact", "generic"], ["ort", "tflite"])
)
def test_every_target_that_takes_constants_as_integers_gets_them(tmp_path: Path, target: str) -> None:
    path = write(tmp_path / "m.onnx", SCALED, CONSTANTS, outputs={"y": ["N", 8, 7, 7]})
    result = onnxdfq.compress(
        path, output=tmp_path / "q.onnx", target=target, method="noise", images=8, bits="w8a8", tuning="none"
    )
    assert {found.verdict for found in lint(tmp_path / "q.onnx", target=target).findings} == {"integer"}
    assert result.metrics["sqnr_db_images"] > 25  # type: ignore[operator]


def test_a_target_that_takes_float_constants_keeps_them_exact(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", SCALED, CONSTANTS, outputs={"y": ["N", 8, 7, 7]})
    result = onnxdfq.compress(path, target="openvino", method="noise", images=8, tuning="none")
    assert {"gains", "offset"} <= set(result.model.graph.initializers)


DENSE = [
    conv("x", "w", "a"),
    helper.make_node("Relu", ["a"], ["b"]),
    conv("b", "v", "c"),
    helper.make_node("Concat", ["b", "c"], ["d"], axis=1),
    helper.make_node("BatchNormalization", ["d", "gamma", "beta", "mean", "var"], ["n"], name="norm"),
    helper.make_node("Relu", ["n"], ["r"]),
    conv("r", "u", "y"),
]
DENSE_WEIGHTS = {
    "w": weight(8, 3, 3, 3),
    "v": weight(8, 8, 3, 3, seed=1),
    "gamma": np.linspace(-0.5, 2, 16, dtype=np.float32),
    "beta": np.linspace(1, -1, 16, dtype=np.float32),
    "mean": np.linspace(-0.1, 0.2, 16, dtype=np.float32),
    "var": np.linspace(0.1, 2, 16, dtype=np.float32),
    "u": weight(8, 16, 3, 3, seed=2),
}


@pytest.mark.parametrize("bits", ["w8a8", slow("w4a8")])
def test_a_normalization_that_nothing_takes_in_is_an_integer_convolution(tmp_path: Path, bits: str) -> None:
    path = write(tmp_path / "m.onnx", DENSE, DENSE_WEIGHTS, outputs={"y": ["N", 8, 8, 8]})
    plan = tmp_path / "plan.toml"
    kinds = compressed(path, tmp_path, bits=bits, save_plan=plan, sqnr=25.0 if bits == "w8a8" else 12.0)
    assert kinds["QLinearConv"] == 4
    assert "BatchNormalization" not in kinds
    assert read_plan(plan).layers["norm"].weight == 8
    assert compressed(path, tmp_path, bits=bits, plan=plan)["QLinearConv"] == 4


def test_a_normalization_stays_where_the_runtime_computes_it_along(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", DENSE, DENSE_WEIGHTS, outputs={"y": ["N", 8, 8, 8]})
    settings = {"method": "noise", "images": 8, "tuning": "none"}
    for target, stays in (("openvino", 1), ("openvino,ort", 0)):  # one graph for all files of a run
        result = onnxdfq.compress(path, target=target, **settings)
        assert [node.op_type for node in result.model.graph].count("BatchNormalization") == stays


@pytest.mark.slow
def test_nothing_is_quantized_within_a_function_in_float(tmp_path: Path) -> None:
    """ConvMixer's unit: the runtime computes Gelu and BatchNormalization in float, one behind the other."""
    parameters = ["gamma", "beta", "mean", "var"]
    nodes = [conv("x", "w", "s0")]
    for i in range(3):
        nodes += [
            conv(f"s{i}", "v", f"a{i}"),
            helper.make_node("Gelu", [f"a{i}"], [f"b{i}"]),
            helper.make_node("BatchNormalization", [f"b{i}", *parameters], [f"n{i}"]),
            helper.make_node("Add", [f"n{i}", f"s{i}"], [f"s{i + 1}"]),
        ]
    weights = {key: array[:8] for key, array in DENSE_WEIGHTS.items() if key in {"w", "v", *parameters}}
    path = write(tmp_path / "m.onnx", nodes, weights, outputs={"s3": ["N", 8, 8, 8]})
    kinds = compressed(path, tmp_path, sqnr=25.0)
    assert (kinds["QLinearConv"], kinds["QLinearAdd"], kinds["BatchNormalization"]) == (4, 3, 3)
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (1 + 3, 3 + 1)
    for target, note in (
        ("ort", "its output goes to Add '"),
        ("qnn", "3 BatchNormalization that no layer can take in"),
    ):
        result = onnxdfq.compress(path, target=target, method="noise", images=8, tuning="none", force=True)
        assert [text.endswith(" So do 2 others.") for text in result.notes if note in text] == [target == "ort"]


def test_small_negative_tails_are_pointed_out(tmp_path: Path) -> None:
    nodes = [conv("x", "w", "a"), helper.make_node("HardSwish", ["a"], ["b"]), conv("b", "v", "y")]
    weights = {"w": weight(8, 3, 3, 3), "v": weight(8, 8, 3, 3, seed=1)}
    path = write(tmp_path / "m.onnx", nodes, weights, outputs={"y": ["N", 8, 8, 8]})
    hint = "1 activation has a small negative tail, which costs a bit; --shift-negative gives it back."
    for target, shifted, wanted in (("ort,qnn", False, 1), ("ort", True, 0), ("tensorrt", False, 0)):
        result = onnxdfq.compress(
            path, target=target, shift_negative=shifted, method="noise", images=8, tuning="none", force=True
        )
        assert result.notes.count(hint) == wanted


@pytest.mark.slow
def test_biases_of_scales_are_not_tuned(tmp_path: Path) -> None:
    """Nor is it said that their weights were forgotten."""
    path = write(tmp_path / "m.onnx", DENSE, DENSE_WEIGHTS, outputs={"y": ["N", 8, 8, 8]})
    settings = {"bits": "w4a8", "method": "noise", "images": 32, "force": True}
    plain, tuned = (onnxdfq.compress(path, tuning=tuning, **settings) for tuning in ("none", "brecq"))
    assert tuned.metrics["blocks_tuned"] == 3
    assert not any("nearest rounding" in note for note in tuned.notes)
    first, second = (
        {name: value.const_value.numpy() for name, value in result.model.graph.initializers.items()}  # type: ignore[union-attr]
        for result in (plain, tuned)
    )
    np.testing.assert_array_equal(first["norm.bias"], second["norm.bias"])
    assert any(np.any(first[name] != second[name]) for name in first.keys() & second.keys() if "quantized" in name)


def test_a_sequence_as_output_is_judged_by_what_it_is_made_of(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("SplitToSequence", ["h"], ["y"], axis=1),
    ]
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype("f4")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    result = onnxdfq.compress(tmp_path / "m.onnx", output=tmp_path / "q.onnx", images=16)
    assert result.metrics["sqnr_db_images"] is not None and result.metrics["sqnr_db_images"] > 25


def test_text_is_refused_by_its_input(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Identity", ["s"], ["t"])]
    weight = numpy_helper.from_array(np.eye(4, dtype="f4"), "w")
    infos = [
        helper.make_tensor_value_info(name, kind, ["N", 4])
        for name, kind in (("x", TensorProto.FLOAT), ("s", TensorProto.STRING), ("y", TensorProto.FLOAT))
    ]
    graph = helper.make_graph(nodes[:1], "g", infos[:2], infos[2:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="the input 's' takes text"):
        onnxdfq.compress(tmp_path / "m.onnx", output=tmp_path / "q.onnx")
