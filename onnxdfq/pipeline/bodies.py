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
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.graph.bodies import Body, bodies_with_layers, with_body
from passes.graph.editing import name_of
from passes.target.target import Target
from passes.write.write_for_target import WriteForTarget

SAMPLES = 16  # that run one by one, for each may take another branch
MOST_ROUNDS = 64  # of a loop that are looked at

Values = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class ObservedBody:
    """A body, its graph made ready to be quantized, and what its values are like."""

    body: Body
    graph: ir.Model
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
        observed.append(ObservedBody(body=body, graph=graph, observations=observations))
    return observed


def with_quantized_bodies(
    written: ir.Model, bodies: list[ObservedBody], target: Target, calibration: Calibration
) -> ir.Model:
    """The written model with its bodies quantized, too."""
    target = replace(target, static_shapes=False)  # sizes inside follow from those of what reaches a body
    for one in bodies:
        plan = calibration.decide(one.graph, one.observations, target)
        graph = one.graph.clone()
        WriteForTarget(plan, target)(graph)
        written = with_body(written, one.body, graph)
    return written


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
