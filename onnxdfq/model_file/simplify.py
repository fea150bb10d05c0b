"""onnxsim, with the metadata and the declared shapes that it drops restored."""

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from onnxdfq.model_file.through_proto import infer_shapes, through_proto
from passes.canonical.branches import inline_branches
from passes.graph.editing import is_op

# Merging equal initializers would tie parameters that are folded and tuned apart from each other, and onnxsim puts the
# nodes of an If's branch in an order that onnx refuses. Query, key and value side by side in one product share a grid,
# and attention in one operator is computed in float.
SKIPPED = (
    "eliminate_duplicate_initializer",
    "eliminate_if_with_const_cond",
    "fuse_attention",
    "fuse_gqa",
    "fuse_qkv",
)


def simplify(model: ir.Model) -> ir.Model:
    """The model simplified by onnxsim, BatchNormalization kept; `model` itself where onnxsim fails.

    Args:
        model: Each CastLike in it becomes a Cast where its type can be inferred.
    """
    import onnxsim  # takes over a second

    _name_types(model)

    def run(proto: onnx.ModelProto) -> onnx.ModelProto:
        result: onnx.ModelProto = onnxsim.simplify(
            proto, skip_fuse_bn=True, skipped_optimizers=list(SKIPPED), certify=False
        )[0]
        return result

    try:
        result = through_proto(model, run, with_weights=True)
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(result)
        while inline_branches(result.graph):  # what a branch computes may be constant in its place, too
            result = through_proto(result, run, with_weights=True)
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(result)
    except (RuntimeError, ValueError, TypeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return model
    _adopt_boundary(model, result)
    common.RemoveUnusedNodesPass()(result)
    return result


def _name_types(model: ir.Model) -> None:
    """Each CastLike whose type can be inferred becomes a Cast, in place.

    A Cast of a constant is constant, a CastLike is not: torch writes the scale of attention with it.
    """
    nodes = [node for node in model.graph.all_nodes() if is_op(node, "CastLike")]
    if nodes:
        infer_shapes(model, strict=False)
    for node in nodes:
        like = node.inputs[1]
        if like is not None and like.dtype is not None:
            node.op_type = "Cast"
            node.resize_inputs(1)
            node.attributes["to"] = ir.AttrInt64("to", int(like.dtype))


def _adopt_boundary(source: ir.Model, target: ir.Model) -> None:
    """Inputs and outputs as declared, and no inner shapes: onnxsim's own inference has written a free batch as 2."""
    declared = {value.name: value for value in (*source.graph.inputs, *source.graph.outputs)}
    for value in (*target.graph.inputs, *target.graph.outputs):
        known = declared[value.name]
        value.type, value.shape = known.type, None if known.shape is None else known.shape.copy()
    for node in target.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
