"""What the user decided about single layers and tensors, held against the network before any image is made."""

from collections.abc import Collection
from dataclasses import replace

import onnx_ir as ir

from onnxdfq.budget import check_budget
from onnxdfq.errors import InputError
from onnxdfq.methods.method import FloatModel, Note, Run
from onnxdfq.pipeline.checks import calibration_of
from onnxdfq.pipeline.request import Request
from onnxdfq.pipeline.rewriting import fold_batch_norms
from onnxdfq.recipe.bits import check_layers
from onnxdfq.recipe.names import one_of
from onnxdfq.recipe.plan_file import PlanFile
from onnxdfq.shown import some
from passes.graph.editing import name_of
from passes.quantize.kept_float import FORMS, NothingMatches, kept_float
from passes.quantize.points import QuantPoints, find_quant_points

NAMED = 3  # tensors that a note names


def steered(request: Request, model: FloatModel, run: Run) -> Request:
    """The request with its patterns as names of the network's nodes and values.

    Layers and tensors are those of the folded network, in which whatever is quantized bears the names of the file.

    Args:
        model: canonical, its BatchNormalizations in place; it is only read.

    Raises:
        InputError: a pattern, a layer or a tensor is none of the network; two of them contradict each other; or a
            budget cannot be kept.
    """
    if request.plan == PlanFile() and not request.keeps_float and request.recipe.budget is None:
        return request
    folded = model.graph.clone()
    fold_batch_norms(folded, request)
    request = _keeping_float(request, folded)
    names = _names(folded) | _names(model.graph)
    for target in request.targets:
        points = find_quant_points(folded, target)
        check_layers(request.pins, points)
        request = replace(request, plan=_known_tensors(request.plan, names, points, run))
        if target.format != "float":
            calibration_of(request).check_tensors(folded, target)
        if request.budgets.cost is not None:
            check_budget(folded, calibration_of(request), target, request.budgets.cost)
    return request


def _keeping_float(request: Request, folded: ir.Model) -> Request:
    try:
        kept = kept_float(folded, request.keeps_float)
    except NothingMatches as error:
        one_of(f"name or pattern ({FORMS})", error.pattern, error.names, field="keep_float")
        raise
    outputs = [replace(output, target=replace(output.target, kept_float=kept)) for output in request.outputs]
    request = replace(request, outputs=outputs)
    for output in outputs:
        if kept and not find_quant_points(folded, output.target).weights and output.target.format != "float":
            raise InputError(
                f"With {', '.join(request.keeps_float)} float no layer of {request.source} is left to quantize.",
                field="keep_float",
            )
    return request


def _names(model: ir.Model) -> set[str]:
    """Of all values and initializers."""
    graph = model.graph
    inner = (value for node in graph for value in node.outputs)
    return {name_of(value) for value in (*inner, *graph.inputs, *graph.initializers.values())}


def _known_tensors(plan: PlanFile, names: Collection[str], points: QuantPoints, run: Run) -> PlanFile:
    """The plan without tensors that are none of these points; ours names none but those, others name whatever is there.

    names: of the network's tensors before its BatchNormalizations are folded, and behind.

    Raises:
        InputError: a tensor is gone from the network.
    """
    weights = {use.initializer for use in points.weights}
    places = {*points.activations, *weights}
    for name in plan.tensors:
        if name not in names or (name not in places and not plan.foreign):
            others = sum(tensor not in names for tensor in plan.tensors) - 1
            more = f" ({others} others of the plan are gone, too)" if others > 0 else ""
            one_of(f"tensor{more}", name, sorted(places), field="plan")
    passed = [name for name in plan.tensors if name not in places]
    if passed:
        run.tell(
            Note(
                text=f"Of the plan {some(passed, NAMED)} are passed over: they have no grid of their own, "
                "for a runtime computes them along with others, or they share that of another."
            )
        )
    return replace(plan, tensors={name: pin for name, pin in plan.tensors.items() if name in places})
