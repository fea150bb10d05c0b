"""Layers inside If and Loop: each body is quantized as a model of its own, on what reaches it when the network runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch
from torch import Tensor

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.calibration.observation import Observations
from onnxdfq.engine import TorchGraph
from onnxdfq.engine.feeds import Feeds
from onnxdfq.images.images import Images
from onnxdfq.methods.method import Note, Run
from onnxdfq.model_file.through_proto import infer_shapes
from onnxdfq.recipe.bits import FLOAT_BITS
from onnxdfq.recipe.tensors import TensorPin
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.graph.bodies import Body, bodies_with_layers, with_body
from passes.graph.editing import name_of
from passes.quantize.plan import QuantPlan, TensorQuant
from passes.target.target import Target
from passes.write.write_for_target import WriteForTarget

SAMPLES = 16  # that run one by one, for each may take another branch
MOST_ROUNDS = 64  # of a loop that are looked at

Values = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class ObservedBody:
    """A body, its graph made ready to be quantized, and what its values are like. results: its outputs, each with the
    value around it that it becomes."""

    body: Body
    graph: ir.Model
    results: Mapping[str, str]
    observations: Observations


def observe_bodies(
    model: ir.Model, images: Images | None, targets: list[Target], calibration: Calibration, run: Run
) -> list[ObservedBody]:
    """Bodies with layers that the images reach; one that they do not reach stays float, which is told.

    Args:
        model: Folded.
        images: That calibrate; without any, bodies stay float.
        targets: That will decide by the observations.
        calibration: How widths are chosen; without integer activations, bodies stay float.
        run: Of the compression.
    """
    found = bodies_with_layers(model) if images is not None and run.bits.activation < FLOAT_BITS else []
    observed = []
    for body in found:
        assert images is not None
        runs = list(_runs(model, body, images, run.device))
        if not runs:
            run.tell(Note(text=f"The {body.attribute} of {body.node} stays float: no image takes it."))
            continue
        graph = body.model.clone()
        infer_shapes(graph, strict=False)
        Canonicalize()(graph)
        FoldBatchNorm()(graph)
        infer_shapes(graph, strict=False)
        observations = calibration.observe_runs(graph, runs, targets, device=run.device)
        results = _results(model, body)
        observed.append(ObservedBody(body=body, graph=graph, results=results, observations=observations))
    return observed


def with_quantized_bodies(
    written: ir.Model, around: QuantPlan, bodies: list[ObservedBody], target: Target, calibration: Calibration
) -> ir.Model:
    """The written model with its bodies quantized, too.

    Args:
        written: The model.
        around: By which it was quantized.
        bodies: Of the model before.
        target: Of the model.
        calibration: Decides the numbers of bodies.
    """
    calibration = replace(calibration, layer_bits={})  # those are bits of layers around
    target = replace(target, static_shapes=False)  # sizes inside follow from those of what reaches a body
    for one in bodies:
        plan = calibration.decide(one.graph, one.observations, target)
        tensors = {**calibration.tensors, **dict(_shared(one, plan, around))}
        plan = replace(calibration, tensors=tensors).decide(one.graph, one.observations, target)
        graph = one.graph.clone()
        WriteForTarget(plan, target)(graph)
        written = with_body(written, one.body, graph)
    return written


def _results(model: ir.Model, body: Body) -> dict[str, str]:
    """Output of a body, or state of a Loop → the value around it that it becomes."""
    results = [name_of(value) for value in next(node for node in model.graph if node.name == body.node).outputs]
    given = [name_of(value) for value in body.model.graph.outputs]
    states = [name_of(value) for value in body.model.graph.inputs][2 : -len(body.captured) or None]
    return dict(zip(given[-len(results) :], results, strict=True)) | dict(zip(states, results, strict=False))


def _shared(one: ObservedBody, own: QuantPlan, around: QuantPlan) -> Iterator[tuple[str, TensorPin]]:
    """Grids of what is quantized on both sides of the body's edge: with them rounding a second time changes nothing.

    What is never below zero, as behind a Relu, keeps a grid without sign, which spares the runtime the Relu: one of the
    same steps. What comes out of a Loop is seen around it in the last round alone: where its grid there is too narrow
    for others, it keeps its own.

    Args:
        one: The body.
        own: What is decided of it alone.
        around: By which the graph around it is quantized.
    """
    for inside, outside in {**{name: name for name in one.body.captured}, **one.results}.items():
        quant = None if outside in around.shifts else around.read_quant(outside)
        alone = own.activations.get(inside)
        if quant is None or alone is None:
            continue
        if inside in one.results and alone.range[0] >= 0 > quant.range[0]:
            quant = replace(quant, signed=False, threshold=quant.scale * 2.0**quant.bits, zero_point=0)
        if inside not in one.results or one.body.attribute != "body" or _reaches(quant, alone):
            yield inside, TensorPin.of(quant)


def _reaches(one: TensorQuant, other: TensorQuant) -> bool:
    """Whether a grid holds all between the ends of another."""
    (low, high), (least, greatest) = ([end * float(quant.scale) for end in quant.range] for quant in (one, other))
    return low <= least and high >= greatest


def _runs(model: ir.Model, body: Body, images: Images, device: str) -> Iterator[Values]:
    """What the inputs of a body are in each of its runs, over the first images."""
    node = next(node for node in model.graph if node.name == body.node)
    own = [name_of(value) for value in body.model.graph.inputs][: -len(body.captured) or None]
    read = [name_of(value) for value in node.inputs if value is not None]
    graph = TorchGraph(model, outputs=list(dict.fromkeys([*read, *body.captured]))).to(device).eval()
    feeds = Feeds(model)
    loop = _Loop(body, own, device) if node.op_type == "Loop" else None
    with torch.no_grad():
        for batch in feeds.batches(graph.input_names, images.samples[: max(SAMPLES, feeds.batch or 1)], 1, device):
            values = dict(graph.stream(*batch))
            around = {name: values[name] for name in body.captured}
            if loop is not None:
                yield from loop.rounds(values, node, around)
            elif bool(values[name_of(node.inputs[0])].any()) == (body.attribute == "then_branch"):
                yield around


class _Loop:
    """A Loop, round by round, through its body."""

    def __init__(self, body: Body, own: list[str], device: str) -> None:
        self._own = own
        self._graph = TorchGraph(body.model).to(device).eval()
        self._states = len(own) - 2

    def rounds(self, values: Mapping[str, Tensor], node: ir.Node, around: Values) -> Iterator[Values]:
        """What the body reads in each round."""
        trip, condition, *states = (None if value is None else values[name_of(value)] for value in node.inputs)
        most = MOST_ROUNDS if trip is None else min(int(trip), MOST_ROUNDS)
        going = condition is None or bool(condition)
        current = [value for value in states if value is not None]
        for index in range(most):
            if not going:
                return
            count, go = torch.tensor(index), torch.tensor(True)
            given = dict(zip(self._own, (count, go, *current), strict=True)) | around
            yield given
            results = self._graph(*(given[name] for name in self._graph.input_names))
            going, current = bool(results[0]), list(results[1 : 1 + self._states])
