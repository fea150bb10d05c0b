"""What the user decides about layers and tensors, as it arrives in files."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.errors import InputError
from onnxdfq.pipeline.result import Result
from onnxdfq.recipe.plan_file import read_plan

from .conftest import Level, run
from .test_targets import write_network

slow = partial(pytest.param, marks=pytest.mark.slow)
SETTINGS: dict[str, Any] = {"method": "noise", "images": 16, "tuning": "none"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("steering") / "m.onnx")


def compress(source: Path, output: Path, **settings: Any) -> Result:
    return onnxdfq.compress(source, output=output, **(SETTINGS | settings))


def names(path: Path) -> set[str]:
    return {tensor.name for tensor in onnx.load(path).graph.initializer}


def scale(path: Path, tensor: str) -> np.ndarray:
    found = {entry.name: entry for entry in onnx.load(path).graph.initializer}
    return numpy_helper.to_array(found[f"{tensor}_scale"])


def kernels(path: Path, folder: Path) -> dict[str, str]:
    """Name of each node that computes → its operator, as ONNX Runtime optimises it."""
    run(path, {"x": np.zeros((1, 3, 8, 8), np.float32)}, Level.ORT_ENABLE_EXTENDED, folder / "optimised.onnx")
    return {node.name: node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node}


def test_a_layer_that_stays_float_is_float_in_the_runtime_too(source: Path, tmp_path: Path) -> None:
    """ONNX Runtime quantizes a float weight itself where integers go in and out; here none go out."""
    output = tmp_path / "q.onnx"
    result = compress(source, output, keep_float="Conv_3")
    assert "b_scale" not in names(output) and "br_scale" not in names(output) and "ar_scale" in names(output)
    kinds = list(kernels(output, tmp_path).values())
    assert kinds.count("QLinearConv") == 1 and sum("Conv" in kind for kind in kinds) == 3
    assert result.metrics["nodes_float"] >= 2


@pytest.mark.parametrize(
    ("pattern", "gone", "left"),
    [
        ("type:Gemm", {"w_scale", "y_scale"}, {"a_w_scale", "g_scale"}),
        slow("after:s", {"w_scale", "y_scale", "g_scale"}, {"s_scale", "a_w_scale"}),
        slow("before:ar", {"a_w_scale", "ar_scale"}, {"b_w_scale", "s_scale"}),
        slow("s", {"s_scale"}, {"g_scale", "w_scale", "ar_scale"}),
    ],
)
def test_patterns(pattern: str, gone: set[str], left: set[str], source: Path, tmp_path: Path) -> None:
    plain = compress(source, tmp_path / "p.onnx")
    result = compress(source, tmp_path / "q.onnx", keep_float=[pattern], save_plan=tmp_path / "plan.toml")
    before, after = names(tmp_path / "p.onnx"), names(tmp_path / "q.onnx")
    assert gone <= before and not gone & after and left <= after
    assert result.metrics["sqnr_db_images"] > plain.metrics["sqnr_db_images"]  # type: ignore[operator]
    again = compress(source, tmp_path / "r.onnx", plan=tmp_path / "plan.toml")
    assert graph(again) == graph(result)


def graph(result: Result) -> bytes:
    assert result.path is not None
    found: bytes = onnx.load(result.path).graph.SerializeToString()
    return found


@pytest.mark.parametrize("target", ["ort", slow("espdl"), slow("vitisai"), slow("qnn"), slow("tflite")])
def test_tuning_and_every_form_go_around_what_stays_float(target: str, source: Path, tmp_path: Path) -> None:
    result = compress(source, tmp_path / "q.onnx", target=target, keep_float=["Conv_0", "Gemm_*"])
    onnx.checker.check_model(tmp_path / "q.onnx", full_check=True)
    assert result.metrics["sqnr_db_images"] > 20  # type: ignore[operator]


@pytest.mark.slow
def test_blocks_with_a_layer_that_stays_float_are_tuned_around_it(source: Path, tmp_path: Path) -> None:
    settings = {"bits": "w4a8", "tuning": "brecq", "images": 32}
    result = compress(source, tmp_path / "q.onnx", keep_float="Conv_3", **settings)
    assert set(result.targets["ort"].plan.integers) == {"a_w", "c_w", "w"}
    assert not any("lie in no block" in note for note in result.notes)


def test_grids_of_the_plan_are_taken_as_they_are(source: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(
        "[tensors]\n"
        "ar = { threshold = 3.0, signed = false, bits = 8 }\n"
        "br = { threshold = 8.0, signed = false }\n"
        "s = { threshold = 16.0, signed = false, zero_point = 40 }\n"
        f"w = {{ threshold = {[float(n + 4) for n in range(10)]}, signed = true }}\n"
    )
    output = tmp_path / "q.onnx"
    compress(source, output, plan=tmp_path / "plan.toml", save_plan=tmp_path / "all.toml")
    assert float(scale(output, "ar")) == np.float32(3 / 256) and float(scale(output, "s")) == 16 / 256
    np.testing.assert_array_equal(scale(output, "w"), np.arange(4, 14, dtype=np.float32) / 128)
    found = read_plan(tmp_path / "all.toml").tensors
    assert found["s"].zero_point == 40 and found["br"].threshold == (8.0,)
    clip = next(node for node in onnx.load(output).graph.node if node.op_type == "Clip" and "br" in node.output[0])
    bounds = {entry.name: numpy_helper.to_array(entry) for entry in onnx.load(output).graph.initializer}
    assert int(bounds[clip.input[2]]) == round(1.2 * 256 / 8), "the graph's own Clip still bounds the integers"


@pytest.mark.parametrize("suffix", [".encodings", slow(".json")])
def test_other_tools_files_lead_back_to_the_same_bytes(suffix: str, source: Path, tmp_path: Path) -> None:
    path = tmp_path / f"plan{suffix}"
    first = compress(source, tmp_path / "a.onnx", scheme="free", save_plan=path)
    second = compress(source, tmp_path / "b.onnx", scheme="free", plan=path, images=2, seed=5)
    a, b = (result.targets["ort"].plan for result in (first, second))
    for name, quant in {**a.activations, **a.weights}.items():
        other = {**b.activations, **b.weights}[name]
        np.testing.assert_allclose(other.scale, quant.scale, rtol=1e-6)
        assert (other.signed, other.zero_point, other.bits) == (quant.signed, quant.zero_point, quant.bits)


def test_onnx_runtimes_quantizer_takes_what_is_written_for_it(source: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.static_quantize_runner import get_tensor_quant_overrides

    compress(source, tmp_path / "a.onnx", save_plan=tmp_path / "plan.json")
    overrides = get_tensor_quant_overrides(tmp_path / "plan.json")
    folded = onnxdfq.compress(source, output=tmp_path / "f.onnx", target="images", **SETTINGS).path

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        batches = iter([{"x": np.zeros((1, 3, 8, 8), np.float32)}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    quantize_static(
        folded, tmp_path / "ort.onnx", Reader(), activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        per_channel=True, extra_options={"TensorQuantOverrides": overrides},
    )  # fmt: skip
    for name in ("x", "ar", "s", "a_w", "w"):
        np.testing.assert_array_equal(scale(tmp_path / "ort.onnx", name), scale(tmp_path / "a.onnx", name))


def test_tensors_of_another_tools_graph_that_have_no_grid_here_are_passed_over(source: Path, tmp_path: Path) -> None:
    entry = {"bw": 8, "dtype": "INT", "enc_type": "PER_TENSOR", "is_sym": False, "scale": [0.5], "offset": [0]}
    table = {"version": "1.0.0", "activation_encodings": [entry | {"name": "ar"}, entry | {"name": "m"}]}
    (tmp_path / "plan.encodings").write_text(json.dumps(table))
    result = compress(source, tmp_path / "q.onnx", plan=tmp_path / "plan.encodings")
    assert float(scale(tmp_path / "q.onnx", "ar")) == 0.5
    assert any("Of the plan m are passed over" in note for note in result.notes)
    table["activation_encodings"].append(entry | {"name": "gone"})  # type: ignore[attr-defined]
    (tmp_path / "plan.encodings").write_text(json.dumps(table))
    with pytest.raises(InputError, match="Unknown tensor: 'gone'"):
        compress(source, tmp_path / "r.onnx", plan=tmp_path / "plan.encodings")


def test_aimet_has_grids_before_batch_normalizations_that_are_folded_here(nets: Any, tmp_path: Path) -> None:
    model = nets.plain_network()
    folded_away = next(node.inputs[0].name for node in model.graph if node.op_type == "BatchNormalization")
    ir.save(model, tmp_path / "m.onnx")
    entry = {"name": folded_away, "bw": 8, "dtype": "INT", "is_sym": False, "scale": [0.5], "offset": [0]}
    (tmp_path / "p.encodings").write_text(json.dumps({"version": "1.0.0", "activation_encodings": [entry]}))
    result = compress(tmp_path / "m.onnx", tmp_path / "q.onnx", plan=tmp_path / "p.encodings")
    assert any(f"Of the plan {folded_away} are passed over" in note for note in result.notes)


@pytest.mark.usefixtures("no_images")
@pytest.mark.parametrize(
    ("plan", "settings", "message"),
    [
        ('keep_float = ["Conv_9"]', {}, r"Unknown name or pattern .*'Conv_9'\. Did you mean 'Conv_"),
        ('keep_float = ["type:Conv", "type:Gemm"]', {}, "no layer of .* is left to quantize"),
        ("[tensors]\nars = { threshold = 1.0, signed = false }", {}, r"Unknown tensor: 'ars'\. Did you mean 'ar'"),
        (
            "[tensors]\nq1 = { threshold = 1.0, signed = false }\nq2 = { threshold = 1.0, signed = false }",
            {},
            r"Unknown tensor \(1 others of the plan are gone, too\): 'q1'",
        ),
        ("[tensors]\nm = { threshold = 1.0, signed = false }", {}, "Unknown tensor: 'm'"),
        ("[tensors]\nar = { threshold = [1.0, 2.0], signed = false }", {}, "activations have one each"),
        ("[tensors]\nw = { threshold = [1.0, 2.0], signed = true }", {}, "its output channels are 10"),
        ("[tensors]\nw = { threshold = 1.0, signed = false }", {}, "weights lie around 0"),
        ("[tensors]\nar = { threshold = 1.0, signed = false }", {"target": "espdl"}, "takes only grids with one"),
        ("[tensors]\nar = { threshold = 1.5, signed = true }", {"target": "espdl"}, "no power of two"),
        ("[tensors]\nar = { threshold = 1.0, signed = true, bits = 4 }", {"target": "espdl"}, "takes activations of 8"),
        (
            '[layers]\nConv_3 = "a4"\n[tensors]\nar = { threshold = 1.0, signed = false, bits = 8 }',
            {},
            "'ar' 8 bits among its tensors and 4 among its layers",
        ),
        ('keep_float = ["Conv_3"]\n[layers]\nConv_3 = "w4"', {}, "Unknown layer: 'Conv_3'"),
        ('keep_float = ["Conv_3"]', {"method": "dfmpc", "bits": "w2/6", "images": None}, "leave --keep-float and"),
    ],
)
def test_what_cannot_be_is_refused_before_images_are_made(
    plan: str, settings: dict[str, Any], message: str, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "plan.toml").write_text(plan)
    with pytest.raises(InputError, match=message):
        compress(source, tmp_path / "q.onnx", plan=tmp_path / "plan.toml", **settings)
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize("required", ["integer", "integer:Gemm"])
def test_what_is_kept_float_cannot_be_required_to_be_integer(required: str, source: Path, tmp_path: Path) -> None:
    flags = ["compress", str(source), "-o", str(tmp_path / "q.onnx"), "-m", "noise", "--images", "4", "--quiet"]
    refused = CliRunner().invoke(main, [*flags, "--keep-float", "type:Gemm", "--require", required])
    assert refused.exit_code == 2 and "contradicts" in refused.stderr
    assert not (tmp_path / "q.onnx").exists()
    met = CliRunner().invoke(main, [*flags, "--keep-float", "type:Gemm", "--require", "integer:Add"])
    assert met.exit_code == 0, met.stderr
    unmet = CliRunner().invoke(main, [*flags, "--force", "--keep-float", "Gemm_*", "--require", "integer:Gemm"])
    assert unmet.exit_code == 1 and "--require integer:Gemm is not met by Gemm Gemm_" in unmet.stderr


def test_the_graph_is_left_alone(two_layers: ir.Model, tmp_path: Path) -> None:
    """Names that are kept go into no file but the plan."""
    result = onnxdfq.compress(two_layers, output=tmp_path / "q.onnx", keep_float="Gemm_y", **SETTINGS)
    assert not any("float" in key for key in result.model.metadata_props)
