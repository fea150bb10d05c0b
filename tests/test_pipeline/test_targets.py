"""One compression, a file for every target: their forms, and that they compute what the engine computes."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.engine import TorchGraph
from onnxdfq.errors import InputError
from onnxdfq.evaluation import Session
from onnxdfq.images.samples import SamplesLike
from onnxdfq.pipeline.result import Result
from onnxdfq.targets import load_target, target_names
from passes.quantize.grid import is_power_of_two

from ..slow import all_but, slow
from .conftest import Level, asks_for_exact_kernels, run

INTEGER = [name for name in target_names() if load_target(name).format != "float"]
QDQ = [name for name in target_names() if load_target(name).format == "qdq"]


def write_network(path: Path) -> Path:
    """Conv-BN-ReLU, depthwise Conv-BN-ReLU6, a residual sum, a pool, a Gemm."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {"low": np.float32(0), "high": np.float32(1.2)}
    nodes = []

    def conv_bn(source: str, target: str, shape: tuple[int, ...], **attributes: object) -> None:
        arrays[f"{target}_w"] = random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        parameters = [f"{target}_{name}" for name in ("gamma", "beta", "mean", "var")]
        for name, spread, centre in zip(parameters, (0.1, 0.3, 0.3, 0.0), (1.0, 0.2, 0.0, 0.7), strict=True):
            arrays[name] = spread * random.normal(size=shape[0]) + centre
        nodes.append(helper.make_node("Conv", [source, f"{target}_w"], [f"{target}_c"], **attributes))
        nodes.append(helper.make_node("BatchNormalization", [f"{target}_c", *parameters], [target]))

    conv_bn("x", "a", (8, 3, 3, 3), pads=[1, 1, 1, 1])
    nodes.append(helper.make_node("Relu", ["a"], ["ar"]))
    conv_bn("ar", "b", (8, 1, 3, 3), pads=[1, 1, 1, 1], group=8)
    nodes.append(helper.make_node("Clip", ["b", "low", "high"], ["br"]))
    conv_bn("br", "c", (8, 8, 1, 1))
    nodes.append(helper.make_node("Add", ["c", "ar"], ["s"]))
    nodes.append(helper.make_node("MaxPool", ["s"], ["m"], kernel_shape=[2, 2], strides=[2, 2]))
    nodes.append(helper.make_node("GlobalAveragePool", ["m"], ["g"]))
    nodes.append(helper.make_node("Flatten", ["g"], ["f"]))
    arrays |= {"w": random.normal(size=(10, 8)), "bias": random.normal(size=10)}
    nodes.append(helper.make_node("Gemm", ["f", "w", "bias"], ["y"], transB=1))
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in arrays.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def compress(folder: Path, targets: list[str], **settings: Any) -> Result:
    source = write_network(folder / "m.onnx")
    settings = {"method": "noise", "images": 16, "tuning": "none"} | settings
    return onnxdfq.compress(source, target=",".join(targets), **settings)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return compress(tmp_path_factory.mktemp("targets"), INTEGER)


def outputs(path: Path, pixels: np.ndarray, level: Level = Level.ORT_DISABLE_ALL, *, exact: bool = False) -> np.ndarray:
    """One image at a time: some of the files take no more."""
    return np.concatenate([run(path, {"x": image[None]}, level, exact=exact)[0] for image in pixels])


def step_of_output(model: ir.Model) -> float:
    producer = model.graph.outputs[0].producer()
    assert producer is not None and producer.inputs[1] is not None and producer.inputs[1].const_value is not None
    return float(producer.inputs[1].const_value.numpy())


def test_each_target_has_its_file(result: Result) -> None:
    assert list(result.targets) == INTEGER
    for name, written in result.targets.items():
        assert written.path is not None and written.path.name == f"m.w8a8.{name}.onnx"
        assert written.metrics["bytes"] == written.path.stat().st_size
        assert written.metrics["sqnr_db_images"] is not None and written.metrics["sqnr_db_images"] > 20
    first = result.targets[INTEGER[0]]
    assert (result.path, result.model) == (first.path, first.model)
    assert set(first.metrics.items()) <= set(result.metrics.items())
    assert {"images", "bytes_float", "seconds"} <= set(result.metrics)
    titles = [load_target(name).title for name in INTEGER if not load_target(name).verified]
    assert len(titles) == 6 and all(any(title in note for note in result.notes) for title in titles)


@pytest.mark.parametrize("name", all_but(INTEGER, ["ort", "compact", "tflite"]))
def test_each_file_is_valid_and_runs_as_it_computes(name: str, result: Result) -> None:
    check_file(name, result)


@pytest.mark.parametrize("bits", [slow("w8a8"), "w4a8"])
@pytest.mark.parametrize(
    "case",
    all_but(
        [
            "clip_pm1_maxpool",
            "relu6_channel_shuffle_conv",
            "relu6_flatten_gemm",
            "relu6_maxpool",
            "relu6_transpose_reshape",
        ],
        ["relu6_maxpool"],
    ),
)
def test_a_clip_in_front_of_what_only_moves_numbers(case: str, bits: str, shared_cases: Path, tmp_path: Path) -> None:
    names = [name for name in INTEGER if int(bits[1]) in load_target(name).weight_bits]
    source, output = shared_cases / f"{case}.onnx", tmp_path / "q.onnx"
    settings: dict[str, Any] = {"method": "noise", "images": 8, "tuning": "none", "bits": bits}
    result = onnxdfq.compress(source, output=output, target=",".join(names), **settings)
    for name in names:
        check_file(name, result)
        assert result.targets[name].metrics["sqnr_db_images"] > (30 if bits == "w8a8" else 15)  # type: ignore[operator]


def check_file(name: str, result: Result) -> None:
    """Valid, and within a step of the output the engine and ONNX Runtime, optimised or not, agree."""
    written, pixels = result.targets[name], result.images.pixels
    assert written.path is not None
    onnx.checker.check_model(written.path, full_check=True)
    onnx.shape_inference.infer_shapes(onnx.load(written.path), strict_mode=True, check_type=True)
    model = ir.load(written.path)
    plain = outputs(written.path, pixels)
    fast = outputs(written.path, pixels, Level.ORT_ENABLE_ALL, exact=asks_for_exact_kernels(name))
    step = step_of_output(model)
    assert np.abs(fast - plain).max() <= 1.01 * step
    if name in QDQ:
        engine = torch.cat([TorchGraph(model)(torch.tensor(image[None]))[0] for image in pixels]).detach().numpy()
        assert np.abs(engine - plain).max() <= 1.01 * step


def test_the_qlinear_file_computes_what_the_quantize_dequantize_file_computes(result: Result) -> None:
    """tflite and ort decide by the same grids, but for the weights, which tflite leaves symmetric."""
    files = [result.targets[name].path for name in ("tflite", "ort")]
    found = [outputs(path, result.images.pixels) for path in files if path is not None]
    step = step_of_output(result.targets["tflite"].model)
    assert np.abs(found[0] - found[1]).max() <= 3.01 * step
    kinds = Counter(node.op_type for node in result.targets["tflite"].model.graph)
    assert (
        kinds["QLinearConv"] == 4 and kinds["QLinearAdd"] == kinds["QuantizeLinear"] == kinds["DequantizeLinear"] == 1
    )
    assert not {"Conv", "Gemm", "Add", "Relu"} & set(kinds)


def dtypes(model: ir.Model) -> dict[str, set[str]]:
    """Element types of weights, biases and activations, as DequantizeLinear reads them."""
    found: dict[str, set[str]] = {"weight": set(), "bias": set(), "activation": set()}
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm"):
            for kind, value in zip(("activation", "weight", "bias"), node.inputs, strict=False):
                producer = None if value is None else value.producer()
                source = value if producer is None else producer.inputs[0]
                assert source is not None and source.dtype is not None
                found[kind].add(source.dtype.name)
    return found


@pytest.mark.parametrize(
    ("name", "opset", "weight", "bias", "activation", "batch"),
    [
        ("ort", 21, "INT8", "FLOAT", {"UINT8"}, "N"),
        ("openvino", 21, "INT8", "FLOAT", {"UINT8", "INT8"}, "N"),
        ("generic", 21, "INT8", "FLOAT", {"UINT8", "INT8"}, "N"),
        ("compact", 21, "INT8", "FLOAT", {"UINT8"}, "N"),
        ("tensorrt", 20, "INT8", "FLOAT", {"INT8"}, "N"),
        ("qnn", 21, "INT8", "INT32", {"UINT8"}, "1"),
        ("vitisai", 17, "INT8", "INT8", {"INT8"}, "1"),
        ("espdl", 21, "INT8", "INT32", {"INT8"}, "1"),
    ],
)
def test_forms(name: str, opset: int, weight: str, bias: str, activation: set[str], batch: str, result: Result) -> None:
    path = result.targets[name].path
    assert path is not None
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(path)))
    assert model.opset_imports == {"": opset}
    assert dtypes(model) == {"weight": {weight}, "bias": {bias}, "activation": activation}
    assert [str(value.shape[0]) for value in (*model.graph.inputs, *model.graph.outputs) if value.shape] == [batch] * 2
    zeros = [node.inputs[2] for node in model.graph if node.op_type == "DequantizeLinear"]
    values = {int(zero) for value in zeros if value is not None and value.const_value is not None
              for zero in value.const_value.numpy().reshape(-1)}  # fmt: skip
    assert values == ({0, 128} if "INT8" not in activation else {0})
    scales = [
        node.inputs[1].const_value for node in model.graph if node.op_type == "DequantizeLinear" and node.inputs[1]
    ]
    assert all(scale is not None and is_power_of_two(scale.numpy()) for scale in scales)
    assert all(scale is not None and scale.shape.rank() == 0 for scale in scales) == (name in ("vitisai", "espdl"))
    for node in model.graph:
        if node.op_type == "Conv":
            assert {"kernel_shape", "strides", "pads", "dilations", "group"} <= set(node.attributes)


def test_int32_biases_are_exact_products(tmp_path: Path) -> None:
    model = compress(tmp_path, ["qnn"], scheme="free").model
    layers = [node for node in model.graph if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 4
    for node in layers:
        source, weight, bias = (
            producer.inputs[1].const_value.numpy()  # type: ignore[union-attr]
            for value in node.inputs
            if value is not None and (producer := value.producer()) is not None
        )
        np.testing.assert_array_equal(bias, source * weight)


@pytest.mark.parametrize("bits", ["w4a8", slow("w2a4"), slow("w3a32")])
def test_the_smallest_file_computes_what_the_default_one_does(bits: str, tmp_path: Path) -> None:
    result = compress(tmp_path, ["ort", "compact"], bits=bits)
    ort, compact = result.targets["ort"], result.targets["compact"]
    assert ort.path is not None and compact.path is not None
    np.testing.assert_array_equal(outputs(compact.path, result.images.pixels), outputs(ort.path, result.images.pixels))
    assert compact.path.stat().st_size < 0.8 * ort.path.stat().st_size
    assert not onnx.load(compact.path).graph.value_info and onnx.load(ort.path).graph.value_info
    assert dtypes(compact.model)["weight"] == {"INT2" if bits == "w2a4" else "INT4"}
    assert compact.metrics["sqnr_db_images"] == pytest.approx(ort.metrics["sqnr_db_images"], abs=0.5)
    assert any("only without its fusions" in note for note in result.notes) == (bits == "w2a4")


@pytest.mark.parametrize(("bits", "weight", "activation"), [("w4a8", "INT4", "UINT8"), ("w4a16", "INT4", "UINT16")])
def test_qnn_takes_four_bits_and_sixteen(bits: str, weight: str, activation: str, tmp_path: Path) -> None:
    result = compress(tmp_path, ["qnn"], bits=bits)
    assert dtypes(result.model) == {"weight": {weight}, "bias": {"INT32"}, "activation": {activation}}
    assert result.path is not None and result.path.name == f"m.{bits}.onnx"


def test_power_of_two_activations_stay_integer(tmp_path: Path) -> None:
    result = compress(tmp_path, ["ort"], scheme="power-of-two-activations", bits="w4a8")
    assert result.path is not None
    run(result.path, {"x": result.images.pixels}, Level.ORT_ENABLE_ALL, tmp_path / "optimised.onnx")
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert (found["QLinearConv"], found["QGemm"], found["Conv"], found["Gemm"]) == (3, 1, 0, 0)
    both = compress(tmp_path, ["ort"], bits="w4a8", force=True)
    assert result.metrics["sqnr_db_images"] > both.metrics["sqnr_db_images"], "free steps for weights help"  # type: ignore[operator]


def test_what_one_target_refuses_stops_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"target qnn .* takes weights of 4 or 8 bits, not of 2"):
        compress(tmp_path, ["ort", "qnn"], bits="w2a8")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_an_operator_that_the_targets_opset_lacks_stops_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Mish", ["a"], ["y"], name="act")]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 8, 8])],
        [numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    with pytest.raises(InputError, match=r"vitisai reads opset 17 and older\. The node act cannot be written"):
        onnxdfq.compress(path, method="noise", images=4, target="vitisai")


def test_the_command_line_repeats_the_option(tmp_path: Path) -> None:
    source = write_network(tmp_path / "m.onnx")
    arguments = ["compress", str(source), "-m", "noise", "--images", "4", "--target", "ort", "--target", "vitisai"]
    printed = CliRunner().invoke(main, [*arguments, "--json"])
    found = json.loads(printed.stdout)
    assert found["output"] == found["targets"]["ort"]["output"] == str(tmp_path / "m.w8a8.ort.onnx")
    assert set(found["targets"]) == {"ort", "vitisai"}
    assert found["bytes"] == found["targets"]["ort"]["bytes"] == (tmp_path / "m.w8a8.ort.onnx").stat().st_size
    told = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "q.onnx")])
    assert f"written: {tmp_path / 'q.vitisai.onnx'}" in told.stdout and (tmp_path / "q.ort.onnx").exists()
    assert "AMD NPU" in told.stderr and "documents alone" in told.stderr


def test_a_model_in_memory_gives_every_graph_and_no_file(tmp_path: Path) -> None:
    proto = onnx.load(write_network(tmp_path / "m.onnx"))
    result = onnxdfq.compress(proto, method="noise", images=4, target="qnn,ort")
    assert [written.path for written in result.targets.values()] == [None, None] and result.path is None
    assert result.model is result.targets["qnn"].model
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_containers_of_two_signs_around_a_move_and_a_relu(tmp_path: Path) -> None:
    """ONNX Runtime moves a Quantize through a Reshape and gives it the type of the one behind the Relu."""
    random = np.random.default_rng(0)
    arrays = {"w": random.normal(size=(192, 8)), "v": random.normal(size=(4, 5))}
    constants = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()]
    constants.append(numpy_helper.from_array(np.array([0, 2, 4]), "shape"))
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["b"]), helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "v"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 5])],
        constants,
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    result = onnxdfq.compress(path, method="noise", images=8, target="openvino,generic")
    assert not any("without its fusions" in note for note in result.notes)
    for written in result.targets.values():
        assert written.metrics["sqnr_db_images"] is not None and written.metrics["sqnr_db_images"] > 25


def test_several_targets_in_a_recipe() -> None:
    recipe = onnxdfq.Recipe(target="ort, openvino,ort")
    assert recipe.target == ("ort", "openvino")
    assert onnxdfq.Recipe.from_dict({"target": "qnn"}, where="here").target == ("qnn",)


def test_the_float_network_runs_once_over_each_set_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, int]] = []
    run_session = Session.run

    def counted(self: Session, samples: SamplesLike) -> list[np.ndarray]:
        runs.append((self.path.name, len(samples)))
        return run_session(self, samples)

    monkeypatch.setattr(Session, "run", counted)
    np.savez(tmp_path / "data.npz", images=np.zeros((5, 3, 8, 8), np.float32))
    compress(tmp_path, ["ort", "compact", "generic"], evaluate=tmp_path / "data.npz")
    assert [count for name, count in runs if name == "m.onnx"] == [16, 32, 5]
    assert len(runs) == 3 * (1 + 3)
