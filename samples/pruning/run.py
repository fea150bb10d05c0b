"""What pruning costs and saves, data-free: `python -m samples.pruning.run`, from the project's root.

With `--only channels` (or sparsity, budget) the rows of that kind are measured anew, and the others stay. Evaluation
images are used for evaluation only. The images that least squares and budgets look at are synthesised once.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxsim

import onnxdfq
from onnxdfq.evaluation import Session, evaluate_all, load_evaluation_data
from onnxdfq.progress import TerminalProgress
from samples.accuracy.run import CASES, DATA
from samples.made import dgh_images
from samples.record import read_rows, write_results

RESULTS = Path(__file__).with_name("results.json")
NAME = "resnet20_cifar10jpeg"
ORIGINAL = DATA / "models" / f"{NAME}.onnx"
IMAGES, STEPS, SEED = 2048, 60, 0
# the budget is what a fifth of the channels comes to in multiplications
WHAT: dict[str, dict[str, Any]] = {
    "sparsity": {"sparsity": 0.5},
    "channels": {"channels": 0.2},
    "budget": {"budget": "macs=0.726"},
}
REPAIRS = ("none", "moments", "least-squares")
PAIRS, RUNS = 100, 5  # of latency


def prune(what: dict[str, Any], repair: str, images: Path, path: Path) -> dict[str, Any]:
    """One row, without accuracy; the file is at `path`."""
    looks = "least-squares" in repair or "budget" in what
    result = onnxdfq.prune(
        ORIGINAL,
        output=path,
        repair=repair,
        normalize=CASES[NAME].normalize,
        calibration=images if looks else None,
        images=IMAGES if looks else None,
        seed=SEED,
        progress=TerminalProgress,
        **what,
    )
    return {"tool": "onnxdfq", "repair": repair, **result.metrics, **what}


def peer(channels: float, path: Path) -> dict[str, Any]:
    """The same of onnxsim at this ratio, which repairs nothing."""
    started = time.monotonic()
    simple, _ = onnxsim.simplify(str(ORIGINAL))
    onnx.save(onnxsim.apply_structured_pruning(simple, sparsity=channels, importance_norm="l1"), path)
    seconds = round(time.monotonic() - started, 1)
    tool = "onnxsim, apply_structured_pruning"
    return {"tool": tool, "channels": channels, "repair": "none", "bytes": path.stat().st_size, "seconds": seconds}


def quantized(path: Path, channels: float, images: Path, written: Path) -> dict[str, Any]:
    """What 8 bits make of a file, pruned or not, with the same images: its row."""
    result = onnxdfq.compress(
        path,
        output=written,
        bits="w8a8",
        normalize=CASES[NAME].normalize,
        calibration=images,
        images=IMAGES,
        seed=SEED,
        progress=TerminalProgress,
    )
    metrics = {key: result.metrics[key] for key in ("bytes", "nodes_integer", "nodes_float", "seconds")}
    repair = {"repair": "least-squares" if channels else "none"}
    return {"tool": "onnxdfq", "channels": channels, "bits": "w8a8"} | repair | metrics


def latency(path: Path) -> dict[str, float]:
    """Milliseconds of one image on one thread, and their ratio: the median of pairs that run one behind the other."""
    sessions = []
    for file in (ORIGINAL, path):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        sessions.append(onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]))
    image = np.random.default_rng(SEED).standard_normal((1, 3, 32, 32)).astype(np.float32)
    times = np.empty((PAIRS, len(sessions)))
    for pair in range(PAIRS):
        for number, session in enumerate(sessions):
            feeds = {session.get_inputs()[0].name: image}
            session.run(None, feeds)
            started = time.perf_counter()
            for _ in range(RUNS):
                session.run(None, feeds)
            times[pair, number] = 1000 * (time.perf_counter() - started) / RUNS
    whole, pruned = np.median(times, axis=0)
    return {
        "latency_ms_float": round(float(whole), 3),
        "latency_ms": round(float(pruned), 3),
        "latency_ratio": round(float(np.median(times[:, 1] / times[:, 0])), 3),
    }


def make_all(folder: Path, kinds: list[str]) -> dict[Path, dict[str, Any]]:
    """Every row of these kinds, without accuracy, by its file; what is narrower with its latency."""
    images = folder / "images.npz"
    dgh_images(ORIGINAL, images, normalize=CASES[NAME].normalize, images=IMAGES, steps=STEPS, seed=SEED)
    rows: dict[Path, dict[str, Any]] = {}
    for kind in kinds:
        for repair in REPAIRS:
            path = folder / f"{len(rows)}.onnx"
            rows[path] = prune(WHAT[kind], repair, images, path)
    if "channels" in kinds:
        path = folder / "peer.onnx"
        rows[path] = peer(0.2, path)
        repaired = next(path for path, row in rows.items() if "channels" in row and row["repair"] == "least-squares")
        for channels, float_path in ((0.0, ORIGINAL), (0.2, repaired)):
            path = folder / f"{channels}.w8a8.onnx"
            rows[path] = quantized(float_path, channels, images, path)
    for path, row in rows.items():
        if "bits" in row or ("sparsity" not in row and row["repair"] == "none"):
            row |= latency(path)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as the docs show them."""
    lines = [
        "| pruned | by | repair | float | pruned | drop | bytes | latency, of float |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        what = next(f"{kind} {row[kind]}" for kind in WHAT if kind in row)
        what += f", {row['bits']}" if "bits" in row else ""
        took = f"{row['latency_ratio']:.2f}" if "latency_ratio" in row else "–"
        lines.append(
            f"| {what} | {row['tool']} | {row['repair']} | {100 * row['top1_float']:.2f} | {100 * row['top1']:.2f} "
            f"| {row['drop_points']:.2f} | {row['bytes']:,} | {took} |"
        )
    return "\n".join(lines)


def main() -> None:
    """All rows, or those of one kind; all files are evaluated together, so that the float network runs once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=list(WHAT), action="append", help="measure these rows anew, keep the others")
    kinds = parser.parse_args().only or list(WHAT)
    kept = read_rows(RESULTS) if len(kinds) < len(WHAT) else []
    kept = [row for row in kept if not any(kind in row for kind in kinds)]
    with tempfile.TemporaryDirectory() as folder:
        made = make_all(Path(folder), kinds)
        sessions = {str(path): Session(path) for path in made}
        original = Session(ORIGINAL)
        (evaluated_on,) = CASES[NAME].evaluate
        data = load_evaluation_data(DATA / f"{evaluated_on}.npz", original, CASES[NAME].normalize)
        found = evaluate_all(sessions, data, against=original, progress=TerminalProgress("evaluating"))
    rows = []
    for path, row in made.items():
        one = found[str(path)]
        assert one.top1 is not None and one.top1_float is not None
        accuracy = {"count": one.count, "top1_float": one.top1_float, "top1": one.top1, "agreement": one.agreement}
        drop = round(100 * (one.top1_float - one.top1), 2)
        head = {"model": NAME, "seed": SEED, "evaluated_on": evaluated_on, "drop_points": drop, **accuracy}
        rows.append({key: value for key, value in (head | row).items() if value is not None})
    order = list(WHAT)
    rows = sorted(kept + rows, key=lambda row: next(order.index(kind) for kind in order if kind in row))
    write_results(RESULTS, rows, images=IMAGES, steps=STEPS)
    print(table(rows))


if __name__ == "__main__":
    main()
