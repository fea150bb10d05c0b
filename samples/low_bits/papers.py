"""ResNet-20 with the quantizer of the papers, to compare with their figures: `python -m samples.low_bits.papers`.

GDFQ and those after it quantize all weights, and of the activations what comes out of a ReLU; scales are any number.
The image, what goes into a sum, the pooled features and the scores stay float, which onnxdfq itself never leaves so.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.images.images import Images
from onnxdfq.model_file import load_model
from onnxdfq.model_file.saving import save_model
from onnxdfq.progress import TerminalProgress
from onnxdfq.recipe.bits import Bits
from onnxdfq.targets import load_target
from onnxdfq.training.distilling import EFFORTS
from onnxdfq.tuning import tuning_for
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.quantize.plan import QuantPlan
from passes.write.insert_qdq import InsertQdq
from samples.accuracy.run import CASES, DATA, accuracies
from samples.low_bits.distil import table
from samples.low_bits.run import STUDIED, Setting, make_images
from samples.record import write_results

RESULTS = Path(__file__).with_name("papers.json")
BITS = ("w4a4", "w3a3")
SEED = 0
TARGET = load_target("ort")


def papers_plan(model: ir.Model, plan: QuantPlan) -> QuantPlan:
    """The plan without the activations that the papers leave float."""
    behind = {node.outputs[0].name for node in model.graph if node.op_type == "Relu"}
    return replace(
        plan,
        activations={name: quant for name, quant in plan.activations.items() if name in behind},
        same_as={name: root for name, root in plan.same_as.items() if root in behind},
    )


def measure(images: Path, bits: str, folder: Path) -> Iterator[dict[str, Any]]:
    """A row after block-wise reconstruction, and one after distillation behind it."""
    model = load_model(DATA / "models" / f"{STUDIED}.onnx")
    Canonicalize()(model)
    FoldBatchNorm()(model)
    pixels, widths = Images.load(images).pixels, Bits.parse(bits)
    calibration = Calibration(weight_bits=widths.weight, activation_bits=widths.activation, scheme="free")
    plan = papers_plan(model, calibration.plan(model, pixels, TARGET))
    tuning = tuning_for("brecq", weight_bits=widths.weight, learn_scales=True, effort="fast")
    assert tuning is not None
    started = time.monotonic()
    plan, _ = tuning.tune(model, plan, TARGET, pixels, seed=SEED, progress=TerminalProgress("tuning"))
    yield from _evaluated(model, plan, folder, bits, "brecq", time.monotonic() - started)
    distilling, progress = EFFORTS["fast"], TerminalProgress("distilling")
    plan, _ = distilling.train(model, plan, TARGET, pixels, learn_scales=True, seed=SEED, progress=progress)
    yield from _evaluated(model, plan, folder, bits, "distil", time.monotonic() - started)


def _evaluated(
    model: ir.Model, plan: QuantPlan, folder: Path, bits: str, tuning: str, seconds: float
) -> Iterator[dict[str, Any]]:
    written, path = model.clone(), folder / "q.onnx"
    InsertQdq(plan, TARGET)(written)
    save_model(written, path, force=True)
    for found in accuracies(path, STUDIED, CASES[STUDIED]):
        row = {"model": STUDIED, "bits": bits, "tuning": tuning, "effort": "fast", "seed": SEED, **found}
        print(bits, tuning, f"drop {row['drop_points']:.2f}", flush=True)
        yield row | {"seconds": round(seconds, 1)}


def main() -> None:
    """All rows; written after each."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        images = Path(name) / "images.npz"
        seconds = make_images(STUDIED, Setting(bits=BITS[0]), SEED, images)
        for bits in BITS:
            for row in measure(images, bits, Path(name)):
                rows.append(row | {"seconds_images": seconds})
                write_results(RESULTS, rows)
    print(table(rows, BITS))


if __name__ == "__main__":
    main()
