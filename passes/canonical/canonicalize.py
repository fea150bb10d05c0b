"""`Canonicalize`: one form for what exporters write in several, so that later passes have to match only one."""

import logging
from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes.common import RemoveInitializersFromInputsPass, RemoveUnusedNodesPass

from passes.canonical.activations import fuse_gelu, fuse_hard_sigmoid, fuse_hard_swish
from passes.canonical.arithmetic import plain_arithmetic
from passes.canonical.bounds import clip_by_numbers
from passes.canonical.convolutions import make_convolutions_explicit, merge_pads
from passes.canonical.fused import lower_fused
from passes.canonical.guards import drop_nan_guards
from passes.canonical.heads import flatten_reshapes, fuse_gemm, plain_gemms, pool_globally
from passes.canonical.normalizations import fuse_layer_norm
from passes.canonical.rows import reshape_before_products
from passes.graph.editing import FreshNames, add_initializer, constant_value, discard, is_op, substitute
from passes.graph.operators import PARAMETERS

logger = logging.getLogger(__name__)


class Canonicalize(ir.passes.InPlacePass):
    """Brings a float model of opset 18 or later into canonical form; what it computes stays the same.

    1. Constant nodes become initializers named as their output was.
    2. Identity and Dropout in inference mode go. A graph output keeps its name; Identity between a graph input,
       an initializer or another graph output and a graph output stays.
    3. Initializers are no graph inputs.
    4. Nodes without a name get one (`Conv_3`), nodes of one name get different ones.
    5. The parameters of Conv, ConvTranspose, Gemm, MatMul and BatchNormalization have one reader each: an initializer
       with several is copied, so that an edit for one layer does not reach another.
    6. Conv carries kernel_shape, strides, dilations, group and pads; auto_pad goes, where the padding can be told
       without running the model. ConvTranspose likewise, but keeps auto_pad SAME and output_shape.
    7. Pad of the spatial axes by a constant zero goes into the pads of the Convs and AveragePools that read it.
    8. ReduceMean over all spatial axes and an AveragePool over the whole map become GlobalAveragePool (and Flatten,
       where the axes were dropped).
    9. Reshape to two axes that keeps the first becomes Flatten.
    10. MatMul of two axes with a constant weight, and Add of a constant per column, become Gemm. The constants of a
       Gemm take in its alpha and beta, and its bias has one number per column. A Reshape to two axes goes before a
       MatMul whose columns it keeps.
    11. x/2 * (1 + erf(x/sqrt 2)), in any order, becomes Gelu (opset 20), so that one activation is quantized, not five;
       its approximation by tanh likewise.
    12. x * clip(x + 3, 0, 6) / 6 becomes HardSwish.
    13. clip(x + 3, 0, 6) / 6 becomes HardSigmoid.
    14. Sub of a constant becomes Add, Div by one Mul: for these integer kernels exist.
    15. What ONNX Runtime's optimizer fused (com.microsoft: FusedConv, BiasGelu ...) becomes standard operators again,
       and Attention, its own and ONNX's, becomes products and a Softmax; Einsum of two matrices becomes MatMul.
    16. (x - mean) / sqrt(mean((x - mean)²) + epsilon) over the last axis becomes LayerNormalization.
    17. Max and Min with one number become Clip.
    18. The check of a Softmax for NaN goes, where no row of its scores can be masked whole.
    19. Nodes and initializers that no graph output needs go.

    Value names that stay keep their name and meaning. Subgraphs (If, Loop, Scan) are read, not rewritten.
    """

    def requires(self, model: ir.Model) -> None:
        opset = model.graph.opset_imports.get("", 0)
        if opset < 18:
            raise ir.passes.PreconditionError(
                f"The model has opset {opset}; Canonicalize reads 18 and later: convert first."
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = RemoveInitializersFromInputsPass()(model).modified
        # One rewrite makes room for another (a Dropout inside a chain), so go round until nothing changes.
        while sum(rewrite(model.graph) for rewrite in REWRITES) or RemoveUnusedNodesPass()(model).modified:
            modified = True
        return ir.passes.PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        names = [node.name for node in model.graph]
        if len(set(names)) < len(names) or not all(names):
            raise ir.passes.PostconditionError("Nodes without a name, or two of one name, are left.")


def lift_constants(graph: ir.Graph) -> int:
    """Rewrite 1. How many."""
    count = 0
    for node in graph:
        if not is_op(node, "Constant") or node.outputs[0].is_graph_output():
            continue
        value, array = node.outputs[0], constant_value(node.outputs[0])
        if array is None or value.name is None:  # a sparse one
            continue
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None
        lifted = ir.val(value.name, tensor.dtype, tuple(array.shape), const_value=tensor)
        value.replace_all_uses_with(lifted)
        graph.remove(node, safe=True)
        graph.register_initializer(lifted)
        logger.debug("the Constant %s becomes an initializer", value.name)
        count += 1
    return count


def remove_identities(graph: ir.Graph) -> int:
    """Rewrite 2. How many."""
    return sum(_bypass(node) for node in graph if is_op(node, "Identity") or _is_inference_dropout(node))


def _is_inference_dropout(node: ir.Node) -> bool:
    if not is_op(node, "Dropout") or any(tuple(mask.uses()) or mask.is_graph_output() for mask in node.outputs[1:]):
        return False
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    constant = constant_value(mode)
    return mode is None or (constant is not None and not constant.any())


def _bypass(node: ir.Node) -> bool:
    source, target = node.inputs[0], node.outputs[0]
    assert source is not None
    op_type, name = node.op_type, target.name
    if not target.is_graph_output():
        target.replace_all_uses_with(source)
    elif source.is_graph_input() or source.is_initializer() or source.is_graph_output():
        return False
    else:
        substitute(target, source)
    discard(node)
    logger.debug("%s that computes %s goes", op_type, name)
    return True


def name_nodes(graph: ir.Graph) -> int:
    """Rewrite 4. How many."""
    fresh, count = FreshNames(graph), 0
    names: set[str] = set()
    for index, node in enumerate(graph):
        if not node.name:
            node.name = fresh(f"{node.op_type}_{index}")
            logger.debug("%s without a name is called %s", node.op_type, node.name)
            count += 1
        elif node.name in names:
            old, node.name = node.name, fresh(node.name)
            logger.debug("a second %s is called %s", old, node.name)
            count += 1
        names.add(node.name)
    return count


def unshare_parameters(graph: ir.Graph) -> int:
    """Rewrite 5. How many."""
    fresh, count = FreshNames(graph), 0
    owned: set[ir.Value] = set()
    for node in graph:
        for index in PARAMETERS.get(node.op_type, ()) if node.domain == "" else ():
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or not value.is_initializer() or len(tuple(value.uses())) < 2:
                continue
            if value not in owned and all(_is_parameter(*use, graph) for use in value.uses()):
                owned.add(value)  # the first reader keeps it
                continue
            array = constant_value(value)
            assert array is not None
            node.replace_input_with(index, add_initializer(graph, fresh(f"{value.name}.{node.name}"), array))
            logger.debug("%s gets its own copy of %s", node.name, value.name)
            count += 1
    return count


def _is_parameter(node: ir.Node, index: int, graph: ir.Graph) -> bool:
    return node.graph is graph and index in PARAMETERS.get(node.op_type, ())


REWRITES: tuple[Callable[[ir.Graph], int], ...] = (
    lift_constants,
    remove_identities,
    name_nodes,
    lower_fused,
    unshare_parameters,
    fuse_layer_norm,  # before its means are taken for pooling
    make_convolutions_explicit,
    merge_pads,
    pool_globally,
    flatten_reshapes,
    reshape_before_products,
    fuse_gemm,
    plain_gemms,
    fuse_gelu,
    fuse_hard_swish,
    fuse_hard_sigmoid,
    plain_arithmetic,
    clip_by_numbers,
    drop_nan_guards,
)
