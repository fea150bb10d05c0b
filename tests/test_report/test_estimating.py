"""Costs of a long network are estimated by gradients: they are near what is measured, and said to be no measurement."""

import json
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxdfq.cli.printing import diagnosis_text
from onnxdfq.report.diagnosis import estimating, inquiry, measuring
from onnxdfq.report.diagnosis.estimating import estimate_costs
from onnxdfq.report.diagnosis.result import Diagnosis
from onnxdfq.report.diagnosis.runs import run_both
from onnxdfq.report.diagnosis.sweep import Trial, measure_costs
from onnxdfq.report.diagnosis.switches import Constant, Network
from onnxdfq.report.page.page import page
from onnxdfq.report.run import FileReport, RunReport, plain

from .. import graphs
from ..slow import all_but
from .planted import PLANTED, attended, chain, detector, inquired, pixels, quantized, weights

SAMPLES = 8


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Every network counts as long."""
    monkeypatch.setattr(measuring, "LONG_NODES", 0)
    return monkeypatch


def levels(found: Diagnosis) -> dict[str, tuple[float, float]]:
    """Of each layer, alone and all but it."""
    rows = {layer.name: (layer.alone_db, layer.all_but_db) for layer in found.layers}
    return {name: (alone, left) for name, (alone, left) in rows.items() if alone is not None and left is not None}


Make = Callable[[], ir.Model]
CASES = [
    (chain, "ort"),
    (detector, "ort"),
    (attended, "ort"),
    (chain, "qnn"),
]  # the latter's takes one sample at a time


@pytest.mark.parametrize(("make", "target"), all_but(CASES, CASES[:2]))
def test_estimates_are_near_what_is_measured(monkeypatch: pytest.MonkeyPatch, make: Make, target: str) -> None:
    model = make()
    made, samples = quantized(model, target=target), pixels(model)[:SAMPLES]
    measured = inquired(made, model, samples)
    for name, value in (("LONG_NODES", 0), ("WORST", 0)):
        monkeypatch.setattr(measuring, name, value)
    monkeypatch.setattr(estimating, "PROBES", 256)
    estimated = inquired(made, model, samples)
    assert all(layer.estimated for layer in estimated.layers) and not any(layer.estimated for layer in measured.layers)
    one, other = levels(measured), levels(estimated)
    assert one.keys() == other.keys() and len(one) > 3
    for name, (alone, left) in one.items():
        assert other[name] == (pytest.approx(alone, abs=2.0), pytest.approx(left, abs=2.0)), name
    order = sorted(one, key=lambda name: one[name][0])
    apart = [(a, b) for a in order for b in order if one[b][0] > one[a][0] + 3]
    assert apart and all(other[a][0] < other[b][0] for a, b in apart)


LAYERS = """(float[N,3,8,8] x) => (float[N,6,8,8] y) {
    h = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)
    g = Conv <kernel_shape=[1,1]> (h, w2)
    a = Mul (g, s)
    y = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (a, w3)
}"""


def shaken(array: NDArray[np.float32], share: float) -> Constant:
    noise = np.random.default_rng(array.size).normal(0, share * array.std() + 1e-3, array.shape).astype(np.float32)
    return Constant(quantized=array + noise, floats=array)


def test_layers_that_read_one_another_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error that a constant brings in is computed at float values, whatever else reads its layer's output."""
    arrays = weights(w1=(8, 3, 3, 3), b1=(8,), w2=(8, 8, 1, 1), w3=(6, 8, 3, 3)) | {"s": np.float32([[[1.5]]] * 8)}
    shares = {"w1": 0.01, "b1": 0.003, "w2": 0.1, "s": 0.001, "w3": 0.03}
    constants = {name: shaken(arrays[name], share) for name, share in shares.items()}
    network = Network(model=graphs.build(LAYERS, **arrays), quantizers={}, constants=constants, device="cpu")
    runs = run_both(network, pixels(network.model)[:SAMPLES], size=SAMPLES, keep=SAMPLES, closely=[], watched=[])
    trials = [Trial(name=name, parts=frozenset({name}), alone=True) for name in constants]
    trials += [Trial(name=f"all but {name}", parts=frozenset({name}), alone=False) for name in constants]
    monkeypatch.setattr(estimating, "PROBES", 512)
    estimates = estimate_costs(network, runs, trials)
    measured = measure_costs(network, runs, trials, advance=lambda _: None)
    assert estimates.alone == {name: pytest.approx(cost, rel=0.25) for name, cost in measured.alone.items()}
    assert estimates.all_but == {name: pytest.approx(cost, rel=0.25) for name, cost in measured.all_but.items()}
    assert max(measured.alone.values()) > 100 * min(measured.alone.values())


def test_what_no_gradient_reaches_is_measured(long: pytest.MonkeyPatch) -> None:
    model = chain()
    made, samples = quantized(model), pixels(model)[:SAMPLES]
    long.setattr(measuring, "WORST", 0)
    long.setattr(estimating, "is_native", lambda node: node.op_type != "GlobalAveragePool")
    found = {layer.name: layer for layer in inquired(made, model, samples).layers}
    assert {name for name, layer in found.items() if layer.estimated} == {"GlobalAveragePool_p", "Gemm_y"}
    assert all(layer.alone_db is not None and layer.all_but_db is not None for layer in found.values())
    long.setattr(measuring, "MOST_NODES", 20)
    fewer = inquired(made, model, samples)
    missing = [layer.name for layer in fewer.layers if layer.alone_db is None]
    assert missing and fewer.layers[-1].name in missing
    assert any(f"{len(missing)} layers of a long network were not measured" in note for note in fewer.notes)


@pytest.mark.parametrize(
    "name",
    all_but(PLANTED, ["a threshold that saturates", "an int32 bias off its grid", "a weight with another scale"]),
)
def test_a_planted_fault_in_a_long_network_is_named_first(long: pytest.MonkeyPatch, name: str) -> None:
    fault = PLANTED[name]
    model, made = fault.models()
    long.setattr(inquiry, "FEW", 16)  # with fewer of these small pictures two costs that are nearly equal change places
    found = inquired(made, model, pixels(model))
    first = found.findings[0]
    assert first.kind == fault.kind
    assert fault.where in (first.layer, first.tensor)
    assert not first.estimated  # the worst are measured
    assert not any(layer.estimated for layer in found.layers[:3])


def test_what_is_estimated_is_said_to_be(long: pytest.MonkeyPatch) -> None:
    model, made = PLANTED["a threshold that saturates"].models()
    found = inquired(made, model, pixels(model))
    assert found.samples == SAMPLES
    estimated = [layer for layer in found.layers if layer.estimated]
    assert len(estimated) == len(found.layers) - 3 and not any(layer.estimated for layer in found.layers[:3])
    assert all(tensor.estimated for layer in estimated for tensor in layer.tensors if tensor.outputs_db is not None)
    assert any(f"{len(estimated)} of its {len(found.layers)} layers are estimated" in note for note in found.notes)
    file = FileReport(
        target="ort",
        path="q.onnx",
        bits="w8a8",
        bytes=1,
        bytes_float=1,
        verdict="",
        sqnr_db=None,
        agreement=None,
        metrics={},
        provenance={},
        diagnosis=found,
    )
    report = RunReport(source="m.onnx", command="onnxdfq", versions={}, files=(file,))
    told = json.loads(json.dumps(plain(report)))["files"][0]["diagnosis"]["layers"]
    assert [layer["estimated"] for layer in told] == [layer.estimated for layer in found.layers]
    text = page(report)
    assert f"({len(estimated)} of {len(found.layers)} layers" in text
    for layer in found.layers:
        assert (f">≈ {layer.alone_db:.1f}<" in text) == layer.estimated
    assert " ≈ " in diagnosis_text(found) and f" {found.layers[0].alone_db:.1f} dB" in diagnosis_text(found)
