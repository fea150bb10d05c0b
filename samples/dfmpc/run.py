"""DF-MPC on real networks, weights only: `python -m samples.dfmpc.run`, from the project's root. No image, no training.

Each row is one network at one pair of bits in one form: quantized directly; the paper's form; nearest integers with the
means and deviations of all layers recalibrated; this project's closed form; that with a noise probe; and, of some
networks, blocks reconstructed behind it on DGH images. The images at hand are used for evaluation only. What the
settings were chosen by says the README.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir

import onnxdfq
from onnxdfq.evaluation.evaluation import Session, evaluate, load_evaluation_data
from onnxdfq.methods.dfmpc.probing import noise_covariances
from onnxdfq.progress import TerminalProgress
from passes.dfmpc.compensate import Compensation, plan_compensation
from passes.dfmpc.layer_pairs import ASSIGNMENTS, Assignment
from passes.dfmpc.plan import CompensateWeights
from samples.record import write_results

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
RESULTS = Path(__file__).with_name("results.json")
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network: how its inputs were normalised, what it is evaluated on, the bits of low and high layers."""

    model: str
    normalize: str
    evaluate: str
    bits: tuple[str, ...]


SMALL, WHOLE = "cifar10_test932", "cifar10jpeg_test"
CASES = (
    Case(model="resnet20_cifar10", normalize="imagenet", evaluate=SMALL, bits=("2/6", "3/6", "6/6")),
    Case(model="resnet56_cifar10", normalize="imagenet", evaluate=SMALL, bits=("2/6", "3/6", "6/6")),
    Case(model="resnet8_cifar10", normalize="0/0.00392156862745098", evaluate=SMALL, bits=("2/6", "6/6")),
    Case(model="convmixer_cifar10", normalize="cifar10", evaluate=SMALL, bits=("6/6",)),
    Case(model="mobilenetv1_vww", normalize="none", evaluate="vww_coco256", bits=("2/6", "6/6")),
    Case(model="resnet20_cifar10jpeg", normalize="imagenet", evaluate=WHOLE, bits=("2/6",)),
    Case(model="resnet56_cifar10jpeg", normalize="imagenet", evaluate=WHOLE, bits=("2/6",)),
)
DIRECT: dict[str, Any] = {"mean": False, "deviation": "keep", "high_layers": False}
# a form: its settings beside the bits, and whether noise shows how inputs vary together
FORMS: dict[str, tuple[dict[str, Any], bool]] = {
    "direct, per layer": (DIRECT | {"rounding": "paper"}, False),
    "direct, per channel": (DIRECT | {"rounding": "nearest"}, False),
    "paper": ({}, False),
    "recalibrated": ({"rounding": "nearest"}, False),
    "closed form": ({}, False),
    "noise probe": ({}, True),
}
RECONSTRUCTED = "reconstructed"  # what `onnxdfq compress --method dfmpc --tuning brecq` makes, at the effort `fast`
RECONSTRUCTIONS = ("resnet20_cifar10", "resnet56_cifar10", "resnet20_cifar10jpeg")


@cache
def prepared(name: str) -> ir.Model:
    """The network in canonical form."""
    model = onnxdfq.load(DATA / "models" / f"{name}.onnx")
    return model


@cache
def float_accuracy(case: Case) -> float:
    """Between 0 and 1."""
    return accuracy(case, prepared(case.model))


def accuracy(case: Case, model: ir.Model) -> float:
    """Between 0 and 1."""
    session = Session(DATA / "models" / f"{case.model}.onnx", model)
    found = evaluate(session, load_evaluation_data(DATA / f"{case.evaluate}.npz", session, case.normalize))
    assert found.top1 is not None
    return found.top1


def measure(case: Case, bits: str, form: str, assignment: Assignment) -> dict[str, Any] | None:
    """Compress and evaluate once; one row, or none where the form does not exist."""
    low, high = map(int, bits.split("/"))
    given, probed = FORMS[form]
    if form == "paper":
        if assignment == "last":  # where sums follow the low layers, no coefficient can
            return None
        settings = Compensation.paper(low_bits=low, high_bits=high)
    else:
        settings = Compensation(**given, low_bits=low, high_bits=high, assignment=assignment)
    model = prepared(case.model).clone()
    started = time.monotonic()
    shown = noise_covariances(model, Path(case.model), seed=SEED) if probed else None
    try:
        plan = plan_compensation(model, settings, covariances=shown)
    except ValueError as error:
        print(f"{case.model} {bits} {form}: {str(error).splitlines()[0]}", flush=True)
        return None
    CompensateWeights(plan)(model)
    seconds = time.monotonic() - started
    return _row(case, bits, form, assignment, accuracy(case, model)) | {"seconds": round(seconds, 2)}


def reconstruct(case: Case, bits: str) -> dict[str, Any]:
    """As `measure`, with the whole pipeline."""
    with tempfile.TemporaryDirectory() as folder:
        result = onnxdfq.compress(
            DATA / "models" / f"{case.model}.onnx",
            output=Path(folder) / "compressed.onnx",
            method="dfmpc",
            bits=f"w{bits}",
            tuning="brecq",
            seed=SEED,
            normalize=case.normalize,
            evaluate=DATA / f"{case.evaluate}.npz",
            progress=TerminalProgress,
        )
    row = _row(case, bits, RECONSTRUCTED, ASSIGNMENTS[0], float(result.metrics["top1"] or 0))
    return row | {"seconds": result.metrics["seconds"]}


def _row(case: Case, bits: str, form: str, assignment: Assignment, top1: float) -> dict[str, Any]:
    top1_float = float_accuracy(case)
    drop = round(100 * (top1_float - top1), 2)
    print(f"{case.model:21} {bits} {form:20} {assignment:5} drop {drop:6.2f}", flush=True)
    return {
        "model": case.model,
        "images": case.evaluate,
        "bits": bits,
        "form": form,
        "low_layers": assignment,
        "top1_float": top1_float,
        "top1": top1,
        "drop_points": drop,
        "seed": SEED,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The drops side by side, a line for each network, bits and choice of low layers."""
    forms = (*FORMS, RECONSTRUCTED)
    lines = [f"| model | bits | low | float | {' | '.join(forms)} |", "|---" * (4 + len(forms)) + "|"]
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = (f"{row['model']} ({row['images']})", row["bits"], row["low_layers"], f"{100 * row['top1_float']:.2f}")
        groups.setdefault(key, {})[row["form"]] = f"{100 * row['top1']:.2f}"
    for key, found in groups.items():
        lines.append(f"| {' | '.join(key)} | {' | '.join(found.get(form, '–') for form in forms)} |")
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> str:
    """The default and what it is compared with, as the docs show them."""
    shown = {"direct, per layer": "direct", "paper": "paper's form", "noise probe": "dfmpc", RECONSTRUCTED: "and brecq"}
    lines = [f"| model | bits | float | {' | '.join(shown.values())} | drop |", "|---" * (4 + len(shown)) + "|"]
    found = {(row["model"], row["bits"], row["form"]): row for row in rows if row["low_layers"] == ASSIGNMENTS[0]}
    for model, bits in dict.fromkeys((model, bits) for model, bits, _ in found):
        row = found[model, bits, "noise probe"]
        rebuilt = found.get((model, bits, RECONSTRUCTED))
        cells = [found.get((model, bits, form)) for form in shown]
        figures = " | ".join("–" if cell is None else f"{100 * cell['top1']:.2f}" for cell in cells)
        float_top1 = f"{100 * row['top1_float']:.2f}"
        drops = " / ".join(f"{drop['drop_points']:.2f}" for drop in (row, rebuilt) if drop is not None)
        lines.append(f"| {model} ({row['images']}) | {bits} | {float_top1} | {figures} | {drops} |")
    return "\n".join(lines)


def _asked(case: Case) -> bool:
    return not sys.argv[1:] or case.model in sys.argv[1:]


def main() -> None:
    """All cases, or those whose model is named on the command line."""
    rows = [
        row
        for case in CASES
        if _asked(case)
        for bits in case.bits
        for assignment in (ASSIGNMENTS if bits != "6/6" else ASSIGNMENTS[:1])
        for form in FORMS
        if (row := measure(case, bits, form, assignment)) is not None
    ]
    rows += [reconstruct(case, "2/6") for case in CASES if case.model in RECONSTRUCTIONS and _asked(case)]
    write_results(RESULTS, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
