"""Lint against both runtimes on whole networks: those of the shared data, compressed with noise images."""

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

import onnxdfq
from onnxdfq.model_file import read_model
from onnxdfq.report.linting import lint
from passes.graph.operators import LINEAR

from ..slow import all_but, slow
from .ort_graph import RUNS_AS, load, verdicts

pytestmark = pytest.mark.skipif(RUNS_AS != "x86_64", reason="the rules were tried on x86-64")
QUICK = [("resnet8_cifar10", "w4a4")]
NETWORKS = ("resnet20_cifar10jpeg", "mobilenetv1_vww", "resnet8_cifar10", "convmixer_cifar10", "vit_cifar10")
REST = [(network, bits) for network in NETWORKS for bits in ("w8a8", "w4a8", "w4a4") if (network, bits) not in QUICK]
REST.append(("fastestdet_coco", "w8a8"))
PAIRS = [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in REST)]


def compressed(shared_data: Path, folder: Path, network: str, bits: str, target: str) -> Path:
    path = folder / "q.onnx"
    source = shared_data / "models" / f"{network}.onnx"
    onnxdfq.compress(source, output=path, method="noise", images=8, bits=bits, target=target, tuning="none")
    return path


@pytest.mark.parametrize(("network", "bits"), PAIRS)
def test_onnxruntime_does_what_lint_says(shared_data: Path, tmp_path: Path, network: str, bits: str) -> None:
    path = compressed(shared_data, tmp_path, network, bits, "ort")
    said = {finding.node: finding.verdict for finding in lint(path).findings}
    assert said == verdicts(load(path, tmp_path / "optimised.onnx"), ir.load(path), said)
    layers = Counter(finding.verdict for finding in lint(path).findings if finding.op_type in LINEAR)
    assert set(layers) == {"integer"}, "what this project writes runs on integers"


@pytest.mark.parametrize("network", all_but(NETWORKS, ["resnet8_cifar10", "vit_cifar10"]))
def test_a_float_network_is_float(shared_data: Path, network: str) -> None:
    found = lint(shared_data / "models" / f"{network}.onnx", target="ort")
    assert found.count["integer"] == found.count["refused"] == 0
    assert found.count["float"] > 20
    assert found.target.name == "ort"


@pytest.mark.parametrize(("network", "bits"), PAIRS)
@pytest.mark.parametrize("target", [slow("ort"), "openvino"])
def test_openvino_does_what_lint_says(shared_data: Path, tmp_path: Path, network: str, bits: str, target: str) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: pip install openvino")
    from . import openvino_graph
    from .test_lint_openvino import disagree

    path = compressed(shared_data, tmp_path, network, bits, target)
    found = {finding.node: finding for finding in lint(path, target="openvino").findings}
    runtime = openvino_graph.verdicts(openvino_graph.compile_graph(path, tmp_path), ir.load(path), set(found))
    disagree(found, runtime)
    layers = {name for name, finding in found.items() if finding.op_type in LINEAR}
    assert len(layers & set(runtime)) > 0.8 * len(layers), "nearly every layer is found again by its name"


@pytest.mark.parametrize(
    ("signed", "weights"), [(False, "int8"), (True, "int8"), (False, "uint8")], ids=["uint8", "int8", "uint8 weights"]
)
def test_files_of_another_quantizer(shared_data: Path, tmp_path: Path, signed: bool, weights: str) -> None:
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Noise(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([{"image": np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype("f4")}])

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[type-arg]
            return next(self.batches, None)

    source = shared_data / "models" / "resnet8_cifar10.onnx"
    quant_pre_process(source, tmp_path / "folded.onnx", skip_symbolic_shape=True)
    path = tmp_path / "peer.onnx"
    quantize_static(
        tmp_path / "folded.onnx",
        path,
        Noise(),
        quant_format=QuantFormat.QDQ,
        per_channel=weights == "int8",
        activation_type=QuantType.QInt8 if signed else QuantType.QUInt8,
        weight_type=QuantType.QInt8 if weights == "int8" else QuantType.QUInt8,
    )
    said = {finding.node: finding.verdict for finding in lint(path, target="ort").findings}
    assert said == verdicts(load(path, tmp_path / "optimised.onnx"), read_model(path), said)
    assert ("float" in said.values()) == signed, "a residual block of int8 is no integer one on x86-64"
