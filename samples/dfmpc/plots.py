"""The paper's figures 4 and 5 for a real network: `python -m samples.dfmpc.plots`, from the project's root.

Figure 4: the weights of two high layers, quantized, before and after they are multiplied with the coefficients of the
layers that they pay for. Figure 5: the loss around the float network, the directly quantized one and the compensated
ones, along two random directions as long as each filter (Li et al., arXiv 1712.09913). The numbers go to plots.npz, the
figures, which need matplotlib, to weights.png and surface.png.
"""

import argparse
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import onnxdfq
from onnxdfq.evaluation.evaluation import Session, load_evaluation_data
from onnxdfq.methods.dfmpc.probing import noise_covariances
from passes.dfmpc.compensate import Compensation, plan_compensation
from passes.dfmpc.layer_pairs import find_layer_pairs, has_weight
from passes.dfmpc.low_bit import weight_rows
from passes.dfmpc.plan import CompensateWeights

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FOLDER = Path(__file__).parent
SEED = 0
REACH = 0.5  # of the directions, in lengths of the filters

Numbers = dict[str, NDArray[np.float32]]


def networks(name: str) -> dict[str, ir.Model]:
    """The float network, and what becomes of it at 2/6 bits in the forms that are compared."""
    path = DATA / "models" / f"{name}.onnx"
    model = onnxdfq.load(path)
    direct = Compensation(
        low_bits=2, high_bits=6, assignment="first", rounding="paper", mean=False, deviation="keep", high_layers=False
    )
    shown = noise_covariances(model, path, seed=SEED)
    plans = {
        "direct": plan_compensation(model, direct),
        "paper": plan_compensation(model, Compensation.paper(low_bits=2, high_bits=6)),
        "ours": plan_compensation(model, Compensation(low_bits=2, high_bits=6, assignment="first"), covariances=shown),
    }
    made = {"float": model}
    for form, plan in plans.items():
        made[form] = model.clone()
        CompensateWeights(plan)(made[form])
    return made


def weight_distributions(name: str) -> Numbers:
    """Of the layers that pay in the first pair and in the last: `before<i>` and `after<i>`, one number per weight."""
    model = onnxdfq.load(DATA / "models" / f"{name}.onnx")
    plan = plan_compensation(model, Compensation.paper(low_bits=2, high_bits=6))
    pairs = find_layer_pairs(model, "first").legal
    found: Numbers = {}
    for index, pair in enumerate((pairs[0], pairs[-1])):
        consumer = pair.consumers[0].node
        weight = plan.weights[consumer.name or ""]
        rows = weight_rows(consumer, weight.integers) * weight.scale[:, None]
        (c,) = plan.coefficients[pair.node.name or ""]
        after = rows.reshape(len(rows), len(c), -1) * c[:, None]
        # as in the paper, in units of the greatest weight
        greatest = np.abs(rows).max()
        found[f"before{index}"] = (rows / greatest).reshape(-1).astype(np.float32)
        found[f"after{index}"] = (after / greatest).reshape(-1).astype(np.float32)
    return found


def loss_surfaces(name: str, evaluation: Path, normalize: str, *, side: int, images: int) -> Numbers:
    """`<form>`: (side, side) mean cross-entropy over the first `images` images; `axis`: (side,) steps."""
    axis = np.linspace(-REACH, REACH, side)
    found: Numbers = {"axis": axis.astype(np.float32)}
    for form, model in networks(name).items():
        random = np.random.default_rng(SEED)  # the same directions for all
        layers = [node for node in model.graph if has_weight(node)]
        values = [value for node in layers if (value := node.inputs[1]) is not None]
        weights = [np.array(value.const_value.numpy()) for value in values if value.const_value is not None]
        directions = [[_direction(weight, random) for weight in weights] for _ in range(2)]
        data = load_evaluation_data(evaluation, Session(evaluation, model), normalize)
        pixels, labels = next(data.batches(images)), data.labels
        assert labels is not None
        surface = np.zeros((side, side), np.float32)
        for row, first in enumerate(axis):
            for column, second in enumerate(axis):
                for value, weight, one, other in zip(values, weights, *directions, strict=True):
                    moved = weight + first * one + second * other
                    value.const_value = ir.tensor(moved.astype(np.float32), name=value.name)
                surface[row, column] = _loss(Session(evaluation, model).run(pixels)[0], labels[: len(pixels)])
        found[form] = surface
        print(
            f"{form}: loss {surface[side // 2, side // 2]:.3f} in the middle, {surface.max():.3f} at most", flush=True
        )
    return found


def _direction(weight: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float64]:
    """Normal numbers, each filter as long as the weight's."""
    rows = random.normal(size=(len(weight), weight[0].size))
    lengths = np.linalg.norm(weight.reshape(len(weight), -1), axis=1) / np.linalg.norm(rows, axis=1)
    return (rows * lengths[:, None]).reshape(weight.shape)


def _loss(logits: NDArray[np.float32], labels: NDArray[np.integer]) -> float:
    scores = logits.reshape(len(logits), -1).astype(np.float64)
    peak = scores.max(axis=1)
    logarithm = peak + np.log(np.exp(scores - peak[:, None]).sum(axis=1))
    return float((logarithm - scores[np.arange(len(scores)), labels]).mean())


def draw(numbers: Numbers, folder: Path) -> None:
    """Write both figures."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit(
            f"The numbers are in {folder / 'plots.npz'}. The figures need matplotlib: pip install matplotlib."
        ) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2))
    for index, panel in enumerate(panels):
        for when in ("before", "after"):
            values = numbers[f"{when}{index}"]
            panel.hist(values, bins=64, range=(-1, 1), alpha=0.6, label=f"{when}, mean {values.mean():.4f}")
        panel.set_title(("first pair", "last pair")[index])
        panel.set_xlabel("6-bit weight of the layer that pays")
        panel.legend()
    figure.tight_layout()
    figure.savefig(folder / "weights.png", dpi=150)
    forms = [form for form in ("float", "direct", "paper", "ours") if form in numbers]
    figure = plt.figure(figsize=(3.4 * len(forms), 3.4))
    first, second = np.meshgrid(numbers["axis"], numbers["axis"], indexing="ij")
    for index, form in enumerate(forms, start=1):
        panel = figure.add_subplot(1, len(forms), index, projection="3d")
        panel.plot_surface(first, second, np.minimum(numbers[form], 10), cmap="viridis")
        panel.set_title(form)
        panel.set_zlabel("loss")
    figure.tight_layout()
    figure.savefig(folder / "surface.png", dpi=150)


def main() -> None:
    """Compute the numbers, write them, draw them."""
    parser = argparse.ArgumentParser(description="The paper's figures 4 and 5.")
    parser.add_argument("--model", default="resnet56_cifar10")
    parser.add_argument("--data", default="cifar10_test932")
    parser.add_argument("--normalize", default="imagenet")
    parser.add_argument("--side", type=int, default=21, help="points along each direction")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--output", type=Path, default=FOLDER)
    given = parser.parse_args()
    numbers = weight_distributions(given.model) | loss_surfaces(
        given.model, DATA / f"{given.data}.npz", given.normalize, side=given.side, images=given.images
    )
    np.savez_compressed(given.output / "plots.npz", **numbers)
    draw(numbers, given.output)


if __name__ == "__main__":
    main()
