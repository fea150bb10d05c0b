"""`onnxdfq diagnose`: planted faults are named first, files of other tools are read, and what is no QDQ is refused."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime.quantization as ort_quantization
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.errors import DataError, InputError

from .. import graphs
from ..slow import all_but
from .planted import PLANTED, chain, detector, digits, inquired, pixels, quantized, weights


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `float.onnx`, `q.onnx` (onnxdfq's), `planted.onnx` (its r2 saturates) and `data.npz`."""
    folder = tmp_path_factory.mktemp("diagnosis")
    model, made = PLANTED["a threshold that saturates"].models()
    ir.save(model, folder / "float.onnx")
    ir.save(quantized(model), folder / "q.onnx")
    ir.save(made, folder / "planted.onnx")
    np.savez(folder / "data.npz", x=pixels(model, 8))
    return folder


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["diagnose", *map(str, arguments)])


@pytest.mark.parametrize("name", all_but(PLANTED, [name for name in PLANTED if not name.startswith("digits")][::3]))
def test_a_planted_fault_is_named_first(name: str) -> None:
    fault = PLANTED[name]
    model, made = fault.models()
    first = inquired(made, model, pixels(model)).findings[0]
    assert first.kind == fault.kind
    assert fault.where in (first.layer, first.tensor)
    assert first.layer in first.cause or first.tensor in first.cause
    assert first.remedies and first.harm > 0


NORMALISED = """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
    h = Conv <kernel_shape=[1,1]> (x, w)
    n = ReduceL2 (h, axes)
    c = Clip (n, least)
    d = Div (h, c)
    y = Conv <kernel_shape=[1,1]> (d, v)
}"""


def test_what_is_no_number_is_told_and_no_figure_given(tmp_path: Path) -> None:
    """A target that divides on integers has a grid for what is divided by, on which small norms are 0."""
    made = weights(w=(4, 3, 1, 1), v=(4, 4, 1, 1))
    model = graphs.build(NORMALISED, axes=np.array([1]), least=np.array(1e-12, "f4"), **made)
    x = pixels(model)
    x[:, :, :4] *= 1e-4
    found = inquired(quantized(model), model, x)  # ONNX Runtime divides in float
    assert found.sqnr_db is not None and not found.not_finite
    file = quantized(model, target="generic")
    found = inquired(file, model, x)
    assert found.sqnr_db is None and found.not_finite == "Div_d" and not found.layers
    assert [one.kind for one in found.findings] == ["not-finite"]
    ir.save(model, tmp_path / "float.onnx")
    ir.save(file, tmp_path / "q.onnx")
    np.savez(tmp_path / "data.npz", x=x)
    command = [tmp_path / "q.onnx", "--against", tmp_path / "float.onnx", "--data", tmp_path / "data.npz"]
    done = call(*command, "--require", "sqnr=1", "-o", tmp_path / "page.json")
    assert done.exit_code == 1
    assert "NaN or infinity comes out" in done.output and "it computes NaN or infinity" in done.output
    assert json.loads((tmp_path / "page.json").read_text())["files"][0]["verdict"] == "poor"


def test_at_least_twenty_faults_are_planted() -> None:
    assert len(PLANTED) >= 20


@pytest.mark.parametrize("name", ["a threshold that saturates", "boxes and scores in one Concat", "half a zero point"])
def test_faults_of_activations_show_without_a_float_model(name: str) -> None:
    _, made = PLANTED[name].models()
    found = inquired(made, None, pixels(made))
    assert (found.findings[0].kind, found.against) == (PLANTED[name].kind, "")
    assert any("weights" in note for note in found.notes)


@pytest.mark.slow
def test_of_a_good_file_only_bits_are_said() -> None:
    model = digits()
    found = inquired(quantized(model), model, pixels(model))
    assert {finding.kind for finding in found.findings} <= {"bits", "weight-bits"}
    assert found.sqnr_db is not None and found.sqnr_db > 30


def test_alone_all_but_and_accumulated_are_what_they_say() -> None:
    model, made = PLANTED["a threshold that saturates"].models()
    found = inquired(made, model, pixels(model))
    worst = found.layers[0]
    assert worst.name == "Conv_h2" and found.sqnr_db is not None
    assert worst.alone_db == pytest.approx(found.sqnr_db, abs=1.0)  # it is nearly all there is
    assert worst.all_but_db is not None and worst.all_but_db > found.sqnr_db + 15
    levels = {tensor.name: tensor.accumulated_db for layer in found.layers for tensor in layer.tensors}
    assert levels["r1"] is not None and levels["r2"] is not None and levels["h3"] is not None
    assert levels["r1"] > 30 > levels["r2"] and levels["h3"] < 20  # the noise goes on


def test_levels_are_those_of_onnx_runtime(files: Path) -> None:
    found = onnxdfq.diagnose(files / "q.onnx", against=files / "float.onnx", data=files / "data.npz")
    measured = onnxdfq.evaluate(files / "q.onnx", files / "data.npz", against=files / "float.onnx")
    assert found.sqnr_db == pytest.approx(measured.sqnr_db, abs=0.05)


def test_on_the_terminal(files: Path) -> None:
    result = call(files / "planted.onnx", "--against", files / "float.onnx", "--data", files / "data.npz")
    assert result.exit_code == 0, result.stderr
    assert "1. Conv_h2: r2 saturates" in result.stdout and "→" in result.stdout
    assert "layer" in result.stdout and "all but" in result.stdout


def test_what_is_required_decides_the_exit_code(files: Path, tmp_path: Path) -> None:
    given = ("--against", files / "float.onnx", "--data", files / "data.npz", "--json")
    assert call(files / "q.onnx", *given, "--require", "sqnr=20").exit_code == 0
    result = call(files / "planted.onnx", *given, "--require", "sqnr=20", "-o", tmp_path / "d.json")
    assert result.exit_code == 1 and "--require sqnr=20 is not met by" in result.stderr
    found = json.loads(result.stdout)
    assert found["findings"][0]["kind"] == "threshold"
    (file,) = json.loads((tmp_path / "d.json").read_text())["files"]
    assert file["diagnosis"] | {"notes": found["notes"]} == found
    assert call(files / "q.onnx", *given, "-o", tmp_path / "d.json").exit_code == 2  # it exists


def test_inputs_are_made_where_none_are_given(files: Path) -> None:
    found = onnxdfq.diagnose(files / "planted.onnx")
    assert found.samples == 32 and found.data == "dead-leaves"
    assert found.findings[0].kind == "threshold"
    assert onnxdfq.diagnose(files / "planted.onnx") == found


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("float.onnx", [], "is a float model, and there is nothing to diagnose"),
        ("data.npz", [], "data.npz"),
        ("q.onnx", ["--against", "q.onnx"], "already"),
        ("q.onnx", ["--require", "size=3"], "is not sqnr=DB"),
        ("q.onnx", ["--target", "orrt"], "Did you mean 'ort'?"),
        ("q.onnx", ["--data", "nowhere.npz"], "nowhere.npz"),
    ],
)
def test_what_cannot_be_diagnosed(files: Path, model: str, options: list[str], message: str) -> None:
    given = [str(files / entry) if "." in entry else entry for entry in options]
    result = call(files / model, *given)
    assert result.exit_code == 2, result.output
    assert message in result.stderr and "Traceback" not in result.output


def test_another_network_is_refused(files: Path, tmp_path: Path) -> None:
    ir.save(detector(), tmp_path / "other.onnx")
    with pytest.raises(DataError, match="not the same network"):
        onnxdfq.diagnose(files / "q.onnx", against=tmp_path / "other.onnx", data=files / "data.npz")


class _Reader(ort_quantization.CalibrationDataReader):
    def __init__(self, batch: NDArray[np.float32]) -> None:
        self.batches = iter([{"x": batch}])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self.batches, None)


@pytest.mark.parametrize(
    "activations", ["QUInt8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("QInt8", "QUInt16"))]
)
def test_files_of_onnx_runtime(files: Path, tmp_path: Path, activations: str) -> None:
    """It leaves out each Relu before a grid that begins at 0, and for 16 bits has a QuantizeLinear of its own."""
    kind = ort_quantization.QuantType[activations]
    ort_quantization.quantize_static(
        files / "float.onnx",
        tmp_path / "q.onnx",
        _Reader(pixels(chain())),
        quant_format=ort_quantization.QuantFormat.QDQ,
        activation_type=kind,
        weight_type=ort_quantization.QuantType.QInt8,
        per_channel=True,
    )
    operators = [node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node]
    for against in (files / "float.onnx", None):
        found = onnxdfq.diagnose(tmp_path / "q.onnx", against=against, data=files / "data.npz")
        assert found.by == "onnx.quantize" and found.sqnr_db is not None
        assert found.sqnr_db > (45 if activations == "QUInt16" else 30), operators
        assert not any("only" in note for note in found.notes)
        assert {layer.name for layer in found.layers} >= {"Conv_h1", "Conv_h2", "Conv_h3", "Gemm_y"}


def test_integers_that_are_computed_on_are_refused(files: Path, tmp_path: Path) -> None:
    ort_quantization.quantize_static(
        files / "float.onnx",
        tmp_path / "q.onnx",
        _Reader(pixels(chain())),
        quant_format=ort_quantization.QuantFormat.QOperator,
    )
    with pytest.raises(InputError, match="operators on integers"):
        onnxdfq.diagnose(tmp_path / "q.onnx")
