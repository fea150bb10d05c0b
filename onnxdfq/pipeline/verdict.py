"""How good a file is, in words, by inputs that decided nothing; and where it is poor, which layers are at fault."""

from collections.abc import Callable, Mapping
from typing import Literal

from onnxdfq.calibration.sensitivity import MOST_NODES, measure_sensitivity, nodes_behind
from onnxdfq.images.images import Images
from onnxdfq.images.samples import Samples
from onnxdfq.methods.method import FloatModel, Measurement, Note, Run
from onnxdfq.model_file import batch_of
from onnxdfq.model_file.saving import runs_lean
from onnxdfq.pipeline.request import Request
from onnxdfq.pipeline.result import Metrics
from onnxdfq.progress import Steps
from onnxdfq.recipe.recipe import Recipe
from passes.quantize.plan import QuantPlan
from passes.quantize.points import data_input, find_quant_points
from passes.target.target import Target

GOOD, POOR = 25.0, 12.0  # dB, of the worst output
UNKNOWN = "unknown"  # the verdict where there was nothing to compare
SAMPLES = 8  # that layers are measured on
WORST = 3


def judge(
    request: Request,
    model: FloatModel,
    plans: Mapping[str, QuantPlan],
    images: Images | None,
    measured: Callable[[str | None], Metrics],
    run: Run,
) -> None:
    """Tells the word for each file; of a poor one, the worst layers and what to try.

    Args:
        request: Whose outputs were measured.
        model: Folded.
        plans: By target name.
        images: That worst layers are measured on: those that were held back, where some were.
        measured: Target name → its numbers.
        run: Of the compression.
    """
    for output in request.outputs:
        name, numbers = output.target.name, measured(output.target.name)
        key: Literal["sqnr_db_held_back", "sqnr_db_images"] = (
            "sqnr_db_held_back" if "held_back" in numbers else "sqnr_db_images"
        )
        which = f"The file for {name}" if len(request.outputs) > 1 else "The file"
        if key not in numbers:
            if "agreement_images" in numbers or "held_back" in numbers:
                run.tell(Measurement(values={"verdict": UNKNOWN}, target=name))
                run.tell(
                    Note(
                        text=f"{which} computes nothing but zeros, or no number at all, on the inputs that it is "
                        "judged by, so nobody knows what it is worth; give --calibration with inputs of your own."
                    )
                )
            continue
        sqnr_db = numbers[key]
        word = verdict(sqnr_db)
        run.tell(Measurement(values={"verdict": word}, target=name))
        if word != "poor" or images is None:
            continue
        worst = [] if runs_lean(model.graph) else worst_layers(model, plans[name], output.target, images, run)
        layers = f" The worst layers: {', '.join(worst)}." if worst else ""
        what = advice(run.recipe, own_images=run.own_images)
        run.tell(Note(text=f"{which} is poor, with a signal to noise of {sqnr_db:.1f} dB: {what}.{layers}"))


def verdict(sqnr_db: float | None) -> str:
    """A word for a signal-to-noise ratio in dB; None is that of outputs without any error."""
    if sqnr_db is None or sqnr_db > GOOD:
        return "good"
    return "fair" if sqnr_db >= POOR else "poor"


def advice(recipe: Recipe, *, own_images: bool) -> str:
    """What to try where a file is poor: what costs least first."""
    choices = []
    if recipe.bits != "w8a8":
        choices.append("more bits (--bits w8a8)")
    if recipe.scales != "free":
        choices.append("--scheme free, where the device takes any scale")
    if not own_images:
        choices.append("--calibration with inputs of your own")
    if recipe.budget is None:
        choices.append("--plan with more bits for these layers")
    return "try " + ", or ".join(choices)


def worst_layers(model: FloatModel, plan: QuantPlan, target: Target, images: Images, run: Run) -> Mapping[str, float]:
    """Node name → noise over signal that the layer alone causes at the outputs, by its weight and by what it reads.

    Args:
        model: Folded, as the plan was made for it. Where its weights are on their grids already (`settled`), nothing
            can be told, and the result is empty; likewise where to measure all would take too long (`MOST_NODES`).
        plan: Of the target.
        target: What the file is for.
        images: To measure on; the first few are taken.
        run: Of the compression.

    Returns:
        The three worst, the worst first.
    """
    losses = {} if model.settled is not None else layer_losses(model, plan, target, images, run)
    return {name: losses[name] for name in sorted(losses, key=lambda name: -losses[name])[:WORST]}


def layer_losses(
    model: FloatModel, plan: QuantPlan, target: Target, images: Images, run: Run, *, most_nodes: int | None = MOST_NODES
) -> Mapping[str, float]:
    """The same of all layers.

    Args:
        most_nodes: that may run in all; none is measured where there would be more.
    """
    layers = {use.node: use for use in find_quant_points(model.graph, target).weights if not use.scales}
    nodes = {node.name: node for node in model.graph.graph}
    reads = {name: data_input(nodes[name], use) for name, use in layers.items()}
    sources = {name: plan.same_as.get(source, source) for name, source in reads.items()}
    activations = {source for source in sources.values() if source in plan.activations}
    behind = nodes_behind(model.graph)
    count = sum(behind[name] for name in (*activations, *(nodes[name].outputs[0].name or "" for name in layers)))
    if most_nodes is not None and count > most_nodes:
        return {}
    samples = Samples.of(images.samples)[: max(SAMPLES, batch_of(model.graph) or 1)]
    found = measure_sensitivity(
        model.graph,
        samples,
        weights={name: {0: plan} for name, use in layers.items() if use.initializer in plan.weights},
        activations={name: {0: plan} for name in activations},
        batch_size=SAMPLES,
        device=run.device,
        advance=Steps(run.progress("looking for the worst layers"), len(layers) + len(activations)),
    )
    return {
        name: found.weights.get(name, {0: 0.0})[0] + found.activations.get(sources[name], {0: 0.0})[0]
        for name in layers
    }
