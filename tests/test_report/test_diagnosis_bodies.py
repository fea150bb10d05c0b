"""`onnxdfq diagnose` in bodies of If and Loop: what is quantized there has rows and costs of its own."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxdfq
from onnxdfq.errors import InputError
from onnxdfq.report.diagnosis import measuring
from onnxdfq.report.diagnosis.result import Diagnosis

from ..test_pipeline.test_bodies import CASES, saved
from ..test_pipeline.test_lint_bodies import build

BRANCHES, LOOP, _ = CASES
ELSE, BODY = "If_3.else_branch.", "Loop_1.body."
X = np.random.default_rng(7).normal(size=(32, 8)).astype("f4")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Case → a folder with its float model `m.onnx` and its quantized one, `q.onnx`."""
    found = {}
    for name in (BRANCHES, LOOP):
        folder = found[name] = tmp_path_factory.mktemp("bodies")
        onnxdfq.compress(saved(CASES[name], folder), output=folder / "q.onnx", calibration=X)
    return found


def planted(folder: Path, name: str, factor: float, to: Path, *, channel: int | None = None) -> Path:
    """The file with an initializer of a body that is so many times as large, or a channel of it."""
    model = onnx.load(folder / "q.onnx")
    bodies = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")]
    (tensor,) = (tensor for body in bodies for tensor in body.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array[... if channel is None else channel] *= factor
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, to / "planted.onnx")
    return to / "planted.onnx"


def diagnosed(path: Path, against: Path | None, x: np.ndarray = X) -> Diagnosis:
    return onnxdfq.diagnose(path, against=against, data=x)


@pytest.mark.parametrize(
    ("case", "scale", "layer"),
    [
        (BRANCHES, f"{ELSE}h_scale", f"{ELSE}MatMul_6"),
        (BRANCHES, f"{ELSE}g_scale", f"{ELSE}Neg_7"),
        (LOOP, f"{BODY}r_scale", f"{BODY}MatMul_3"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_what_is_wrong_in_a_body_is_named_first(
    files: dict[str, Path], tmp_path: Path, case: str, scale: str, layer: str, alone: bool
) -> None:
    path = planted(files[case], scale, 64.0, tmp_path)
    found = diagnosed(path, None if alone else files[case] / "m.onnx")
    row, first = found.layers[0], found.findings[0]
    assert (row.name, row.op_type) == (layer, layer.rpartition(".")[2].partition("_")[0])
    assert (first.layer, first.kind) == (layer, "bits") and "its grid fits" not in first.cause  # nobody has seen that
    assert not any("--plan" in remedy and "no body" not in remedy for remedy in first.remedies)
    assert any("reach no body" in remedy for remedy in first.remedies)
    assert row.kernel == {item.node: item.verdict for item in onnxdfq.lint(path).findings}[layer]
    assert row.alone_db is not None and row.all_but_db is not None and row.all_but_db > row.alone_db + 6


def test_a_weight_in_a_body_is_held_against_that_of_the_float_model(files: dict[str, Path], tmp_path: Path) -> None:
    path = planted(files[BRANCHES], f"{ELSE}v_scale", 3.0, tmp_path, channel=2)
    first = diagnosed(path, files[BRANCHES] / "m.onnx").findings[0]
    assert (first.kind, first.layer, first.tensor) == ("weight-scale", f"{ELSE}MatMul_6", f"{ELSE}v")
    assert "in 1 of 8 channels: channel 2 is 3.0" in first.cause


def test_a_branch_costs_nothing_on_inputs_that_do_not_take_it(files: dict[str, Path]) -> None:
    found = diagnosed(files[BRANCHES] / "q.onnx", None, np.abs(X))
    alone = {layer.name: layer.alone_db for layer in found.layers}
    assert alone[f"{ELSE}MatMul_6"] is None and alone[f"{ELSE}Neg_7"] is None and alone["If_3.then_branch.MatMul_4"]


@pytest.mark.parametrize("case", [BRANCHES, LOOP])
def test_all_noise_of_a_file_is_that_of_its_rows(files: dict[str, Path], case: str) -> None:
    found = diagnosed(files[case] / "q.onnx", None, X[:16])
    costs = [10 ** (-layer.alone_db / 10) for layer in found.layers if layer.alone_db is not None]
    assert found.sqnr_db == pytest.approx(-10 * np.log10(sum(costs)), abs=3.0)


def test_in_a_long_network_layers_in_bodies_are_measured(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files[BRANCHES] / "q.onnx"
    measured = {layer.name: layer for layer in diagnosed(path, None, X[:8]).layers}
    monkeypatch.setattr(measuring, "LONG_NODES", 0)
    found = diagnosed(path, None, X[:8])
    inside = [layer for layer in found.layers if layer.name.startswith(ELSE)]
    assert len(inside) == 3 and not any(layer.estimated for layer in inside)
    assert [layer.alone_db for layer in inside] == [measured[layer.name].alone_db for layer in inside]


OUTSIDE = "hq = QuantizeLinear (h, s, z)"


def around(yes: str) -> onnx.ModelProto:
    """A branch that is always taken on what is positive, with a pair behind it."""
    return build(f"""net (float[N,8] x) => (float[N,8] y) {{
        h = Neg (x) {OUTSIDE} hh = DequantizeLinear (hq, s, z)
        none = Constant <value = float {{-1000}}> () total = ReduceSum <keepdims = 0> (x) c = Greater (total, none)
        r = If (c) <then_branch = yes () => (float[N,8] t) {{ {yes} }},
                    else_branch = no () => (float[N,8] e) {{ e = Abs (hh) }}>
        rq = QuantizeLinear (r, s, z) y = DequantizeLinear (rq, s, z) }}""")


def test_what_is_quantized_around_a_body_may_be_dequantized_in_it(tmp_path: Path) -> None:
    onnx.save(around("hd = DequantizeLinear (hq, s, z) t = Neg (hd)"), tmp_path / "q.onnx")
    found = diagnosed(tmp_path / "q.onnx", None)
    assert {layer.name for layer in found.layers} == {"Neg_h", "If_r"}
    assert next(layer for layer in found.layers if layer.name == "Neg_h").alone_db == pytest.approx(found.sqnr_db)


def test_a_body_that_computes_on_integers_is_refused(tmp_path: Path) -> None:
    yes = """tq = QuantizeLinear (hh, s, z) ti = Cast <to = 6> (tq) tf = Cast <to = 1> (ti) t = Mul (tf, s)"""
    onnx.save(around(yes), tmp_path / "q.onnx")
    with pytest.raises(InputError, match=r"cannot be diagnosed: Cast 'If_r\.then_branch\.Cast_ti' reads the integers"):
        diagnosed(tmp_path / "q.onnx", None)
