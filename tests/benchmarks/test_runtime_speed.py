"""Our W8A8 file in ONNX Runtime against float, and against the file that onnxruntime.quantization writes."""

import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import onnxdfq

pytestmark = pytest.mark.benchmark
PAIRS = 40


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _ratio(ours: Path, other: Path, batch: int, shape: tuple[int, ...]) -> float:
    """Median over interleaved pairs of our time over theirs."""
    sessions = [_session(ours), _session(other)]
    feed = {sessions[0].get_inputs()[0].name: np.random.default_rng(0).normal(size=(batch, *shape)).astype("f4")}
    ratios = []
    for _ in range(PAIRS):
        times = []
        for session in sessions:
            started = time.perf_counter()
            for _ in range(max(1, 64 // batch)):
                session.run(None, feed)
            times.append(time.perf_counter() - started)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios[5:])


@pytest.mark.parametrize(("name", "side"), [("resnet20_cifar10jpeg", 32), ("mobilenetv1_vww", 96)])
@pytest.mark.parametrize("batch", [1, 32])
def test_our_file_is_as_fast_as_the_peers_and_faster_than_float(
    shared_data: Path, tmp_path: Path, name: str, side: int, batch: int
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Noise(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            random = np.random.default_rng(0)
            self.batches = iter([{"image": random.normal(size=(8, 3, side, side)).astype("f4")} for _ in range(4)])

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[type-arg]
            return next(self.batches, None)

    source = shared_data / "models" / f"{name}.onnx"
    quant_pre_process(source, tmp_path / "prepared.onnx")
    quantize_static(
        tmp_path / "prepared.onnx", tmp_path / "peer.onnx", Noise(), quant_format=QuantFormat.QDQ, per_channel=True
    )
    onnxdfq.compress(source, output=tmp_path / "ours.onnx", method="noise", images=32)
    against_peer = _ratio(tmp_path / "ours.onnx", tmp_path / "peer.onnx", batch, (3, side, side))
    against_float = _ratio(tmp_path / "ours.onnx", source, batch, (3, side, side))
    print(f"\n{name}, batch {batch}: {against_peer:.3f} of quantize_static's time, {against_float:.3f} of float's")
    assert against_peer <= 1.05, "5 % is the noise of a shared machine"
    # ONNX Runtime's integer depthwise kernels are slower than its float ones, for the peer's file as for ours
    assert name == "mobilenetv1_vww" or against_float < 1


def test_four_bit_weights_cost_no_time(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "models" / "resnet20_cifar10jpeg.onnx"
    for bits in ("w8a8", "w4a8"):
        onnxdfq.compress(source, output=tmp_path / f"{bits}.onnx", method="noise", images=32, bits=bits, tuning="none")
    ratio = _ratio(tmp_path / "w4a8.onnx", tmp_path / "w8a8.onnx", 32, (3, 32, 32))
    print(f"\nresnet20, batch 32: w4a8 in {ratio:.3f} of w8a8's time")
    assert ratio <= 1.05, "5 % is the noise of a shared machine"
