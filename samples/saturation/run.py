"""What ONNX Runtime's default kernels make of 8-bit files on the processor at hand, against what the files say:
`python -m samples.saturation.run`, from the project's root.

Where the processor has no VNNI, kernels saturate on files that allow it. A processor that this one emulates is measured
as well: `qemu-x86_64 -cpu Haswell python -m samples.saturation.run --processor "Haswell, emulated by qemu 7.2"`.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import onnxdfq
from onnxdfq.evaluation.saturation import EXACT, saturates
from samples.record import hardware, write_results

SHARED = Path(__file__).resolve().parents[3] / "shared"
RESULTS = Path(__file__).with_name("results.json")
Images = NDArray[np.float32]
SEED = 0
PER_CHANNEL_OPSET = 13
CALIBRATION = 32  # images, and as many others to measure on


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The images, one batch of one after the other."""

    def __init__(self, name: str, images: Images) -> None:
        self._batches = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, Images] | None:
        """The next batch, None behind the last."""
        return next(self._batches, None)


def random_images() -> Images:
    return np.random.default_rng(SEED).uniform(0, 1, (2 * CALIBRATION, 3, 16, 16)).astype(np.float32)


def cifar_images() -> Images:
    pixels = np.load(SHARED / "data" / "cifar10jpeg_train10k.npz")["images"][: 2 * CALIBRATION] / 255
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)


def faces() -> Images:
    """Middles of photographs, 48 x 48, in the units of MTCNN; no face needs to be in them."""
    pixels = np.load(SHARED / "data" / "coco_val128_352.npz")["images"][: 2 * CALIBRATION, 152:200, 152:200]
    return ((pixels - 127.5) / 128).astype(np.float32)


MODELS = {
    SHARED / "cases" / "saturation.onnx": random_images,
    SHARED / "data" / "models" / "resnet20_cifar10jpeg.onnx": cifar_images,
    SHARED / "data" / "models" / "mtcnn_onet.onnx": faces,
}


def session(path: Path, *more: tuple[str, str], optimise: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for key, value in more:
        options.add_session_config_entry(key, value)
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def written(source: Path, images: Images, folder: Path) -> dict[str, Path]:
    """Tool → its file, all from the same images and the same model: one per-channel scales are possible with."""
    if onnx.load(source).opset_import[0].version < PER_CHANNEL_OPSET:
        newer = folder / "newer.onnx"
        onnx.save(onnx.version_converter.convert_version(onnx.load(source), PER_CHANNEL_OPSET), newer)
        source = newer
    np.savez(folder / "images.npz", images=images)
    ours, all_bits, seven_bits = (folder / f"{name}.onnx" for name in ("onnxdfq", "ort8", "ort7"))
    onnxdfq.compress(source, calibration=folder / "images.npz", output=ours, scheme="free", force=True)
    name = session(source).get_inputs()[0].name
    for path, reduced in ((all_bits, False), (seven_bits, True)):
        quantize_static(
            source,
            path,
            Reader(name, images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduced,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    return {"onnxdfq w8a8": ours, "quantize_static": all_bits, "quantize_static, 7-bit weights": seven_bits}


def outputs(found: onnxruntime.InferenceSession, images: Images) -> Images:
    name = found.get_inputs()[0].name
    parts = [np.concatenate([part.ravel() for part in found.run(None, {name: image[None]})]) for image in images]
    return np.stack(parts)


def decibel(exact: Images, other: Images) -> float:
    return round(10 * float(np.log10(np.square(exact).sum() / np.square(other - exact).sum())), 1)


def rows_of(source: Path, images: Images) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        files = written(source, images[:CALIBRATION], Path(scratch))
        unseen = images[CALIBRATION:]
        floats = outputs(session(source), unseen)
        for tool, path in files.items():
            default, exact = outputs(session(path), unseen), outputs(session(path, EXACT), unseen)
            rows.append(
                {
                    "model": source.stem,
                    "tool": tool,
                    "sqnr_exact_kernels": decibel(floats, exact),
                    "sqnr_default_kernels": decibel(floats, default),
                    "same_outputs": round(float(np.mean(default == exact)), 4),
                    "seed": SEED,
                    "seconds": round(time.monotonic() - started, 1),
                }
            )
            print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """As the docs have it."""
    head = ["| model | file | exact | default |", "|---|---|---|---|"]
    body = [
        f"| {row['model']} | {row['tool']} | {row['sqnr_exact_kernels']} dB | {row['sqnr_default_kernels']} dB |"
        for row in rows
    ]
    return "\n".join(head + body)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processor", default=hardware(), help="what the command runs on, where that is emulated")
    processor = parser.parse_args().processor
    rows = [row for source, images in MODELS.items() for row in rows_of(source, images())]
    write_results(RESULTS, rows, hardware=processor, saturates=saturates(), images=CALIBRATION)


if __name__ == "__main__":
    main()
