"""How good synthesised images are, without labels: `python -m samples.synthesis.compare`, from the project's root.

Two measures per set of images (see `onnxdfq.synthesis.quality`): the distance of its statistics at every
BatchNormalization from the running ones, and the share of images to which the float model gives a class with more than
0.9. Rows `real` are training images, for reference only; nothing is chosen by them.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

import onnxdfq
from onnxdfq.images import Images
from onnxdfq.images.dataset import load_dataset
from onnxdfq.images.normalization import Normalization
from onnxdfq.methods import Dgh, Noise, ZeroQ
from onnxdfq.methods.method import Synthesis
from onnxdfq.model_file import main_input
from onnxdfq.synthesis.quality import evaluate_images
from samples.record import write_results

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
RESULTS = Path(__file__).with_name("results.json")
SEED = 0
RAW = "0/0.00392156862745098"
TRAINING = "cifar10jpeg_train10k"

# model: how its inputs were normalised, how many images, training images where there are some
CASES: dict[str, tuple[str, int, str | None]] = {
    "resnet20_cifar10jpeg": ("imagenet", 256, TRAINING),
    "resnet8_cifar10": (RAW, 128, None),
    "mobilenetv1_vww": ("none", 64, None),
}
FORMS = ("resnet20_cifar10jpeg", "resnet8_cifar10")  # where the forms of the losses are compared


def methods(*, forms: bool) -> dict[str, Synthesis]:
    """DGH and the baselines at effort fast; with `forms`, DGH with the two other forms of its losses too."""
    dgh = Dgh()
    table: dict[str, Synthesis] = {"dgh": dgh, "zeroq": ZeroQ(steps=200), "noise": Noise()}
    if forms:
        table |= {
            "dgh, public form": replace(dgh, loss_form="public"),
            "dgh, paper's form": replace(dgh, loss_form="paper"),
        }
    return table


def row(name: str, method: str, model: ir.Model, images: Images, seconds: float | None) -> dict[str, Any]:
    """One line of the table, printed as it comes."""
    quality = evaluate_images(model, images)
    print(
        f"{name:22} {method:18} {quality.bn_distance:8.4f} {quality.confident!s:8.8} {seconds or 0:6.1f} s", flush=True
    )
    return {
        "model": name,
        "method": method,
        "images": len(images),
        "seed": SEED,
        "bn_distance": round(quality.bn_distance, 5),
        "confident": quality.confident,
        "seconds": seconds,
        "settings": images.provenance.get("settings"),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as the docs show them."""
    lines = ["| model | images | made by | distance | confident |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['model']} | {row['images']} | {row['method']} | {row['bn_distance']:.4f} | {row['confident']:.1%} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """All models, all methods."""
    rows = []
    for name, (normalize, count, training) in CASES.items():
        model = onnxdfq.load(DATA / "models" / f"{name}.onnx")
        normalization = Normalization.parse(normalize)
        for label, method in methods(forms=name in FORMS).items():
            started = time.perf_counter()
            images = method.synthesize(model, count=count, seed=SEED, normalization=normalization)
            rows.append(row(name, label, model, images, round(time.perf_counter() - started, 1)))
        if training is not None:
            data = load_dataset(DATA / f"{training}.npz", spec=main_input(model), normalization=normalization)
            rows.append(
                row(name, "real", model, Images(pixels=next(data.batches(count)), method="file", seed=SEED), None)
            )
    write_results(RESULTS, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
