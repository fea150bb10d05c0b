"""The float network made ready: the method's rewriting, BatchNormalization folded, channels evened out."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxdfq.errors import InputError
from onnxdfq.images.source import ImageSource
from onnxdfq.methods.dfq.equalization import equalize
from onnxdfq.methods.method import FloatModel, Measurement, Method, Note, Run
from onnxdfq.pipeline.request import Request
from onnxdfq.recipe.bits import FLOAT_BITS, Bits
from passes.canonical.fold_batch_norm import FoldBatchNorm, unfolded_batch_norms
from passes.graph.batch_norm import read_batch_norms
from passes.graph.editing import constant_value, is_op, name_of
from passes.graph.filters import is_depthwise
from passes.graph.operators import LINEAR
from passes.moments.moments import Moments, batch_norm_moments, moments_after_edit
from passes.ocs import SplitChannels, channel_splits, widened_values
from passes.write.batch_norm_to_conv import BatchNormToConv

WHOLE = 8  # bits of weights that lose nothing to speak of


def rewritten(model: FloatModel, method: Method, images: ImageSource | None, request: Request, run: Run) -> FloatModel:
    """The folded network with the moments of its values. The graph is edited in place."""
    model = method.rewrite(model, images, run)
    model = _folded(model, request, run)
    if method.equalizes or request.recipe.equalize:
        model = _equalized(model, request, run)
    elif request.recipe.equalize is None and model.teacher is None and _loses_most(model.graph, run):
        model = _equalized(model, request, run, unasked=True)
    model = _split(model, request, run) if request.recipe.split_channels else model
    _refuse_overflow(model.graph, request)
    return model


def _refuse_overflow(model: ir.Model, request: Request) -> None:
    """Layers whose numbers float32 no longer holds, once what stands beside them was taken in."""
    for node in model.graph:
        for value in node.inputs[1:3] if is_op(node, *LINEAR) else ():
            array = constant_value(value)
            if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InputError(
                    f"{request.source}: {name_of(value)!r} of {node.op_type} {node.name!r} becomes infinite when what "
                    "stands beside it (a normalization, alpha, beta) is taken into it; the network computes with "
                    "numbers that float32 hardly holds: export it again from good weights."
                )


def fold_batch_norms(graph: ir.Model, request: Request) -> int:
    """BatchNormalizations into the layers beside them, else into layers of their own. How many no layer took in."""
    FoldBatchNorm()(graph)
    unfolded = len(unfolded_batch_norms(graph))
    if Bits.parse(request.recipe.bits).activation < FLOAT_BITS:
        BatchNormToConv(request.targets)(graph)
    return unfolded


def _folded(model: FloatModel, request: Request, run: Run) -> FloatModel:
    before = len(read_batch_norms(model.graph))
    moments = batch_norm_moments(model.graph)
    unfolded = fold_batch_norms(model.graph, request)
    if model.teacher is not None:
        fold_batch_norms(model.teacher, request)
    left = unfolded_batch_norms(model.graph)
    run.tell(Measurement(values={"batch_norms_folded": before - unfolded}))
    if became := unfolded - len(left):
        run.tell(
            Note(text=f"{became} BatchNormalization that no layer can take in became Conv of one tap per channel.")
        )
    if left:
        others = {1: "", 2: " So does one other."}.get(len(left), f" So do {len(left) - 1} others.")
        run.tell(Note(text=left[0].reason + others))
    return replace(model, moments=moments)


def _loses_most(model: ir.Model, run: Run) -> bool:
    """Whether weights below 8 bits meet depthwise convolutions, whose channels differ most, each of a few weights, and
    scales are powers of two, to which the channels are aligned. With free scales nothing is gained."""
    few = run.bits.low is None and run.bits.weight < WHOLE
    return few and run.recipe.scheme == "power-of-two" and any(map(is_depthwise, model.graph))


def _equalized(model: FloatModel, request: Request, run: Run, *, unasked: bool = False) -> FloatModel:
    """DFQ's equalization: the same float function by weights that lose less. unasked: whether a note has to tell it."""
    recipe, per_channel = request.recipe, all(target.per_channel_weights for target in request.targets)
    aligned = run.bits.weight if recipe.scheme == "power-of-two" and per_channel else None
    done = equalize(model.graph, model.moments, aligned_bits=aligned)
    run.tell(Measurement(values={"layers_equalized": done.equalized_layers, "biases_absorbed": done.absorbed_biases}))
    if unasked and done.equalized_layers:
        run.tell(
            Note(
                text="Channels are evened out across layers, for depthwise convolutions lose most below 8 bits; "
                "--no-equalize leaves them as they are."
            )
        )
    for name in done.lifted_clips:
        run.tell(Note(text=f"{name}: the upper bound of its Clip cuts next to nothing, and went."))
    return replace(model, moments=done.moments)


def _split(model: FloatModel, request: Request, run: Run) -> FloatModel:
    """Outlier channels split in two (OCS)."""
    recipe = request.recipe
    splits = channel_splits(
        model.graph,
        ratio=recipe.split_channels,
        bits=run.bits.weight,
        power_of_two=recipe.scheme == "power-of-two",
        per_channel=all(target.per_channel_weights for target in request.targets),
    )
    widened = widened_values(model.graph, splits)
    SplitChannels(splits)(model.graph)
    run.tell(Measurement(values={"layers_split": len(splits)}))
    return replace(model, moments=moments_after_edit(model.moments, widened, Moments.taken))
