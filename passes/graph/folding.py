"""The traces that a batch normalization leaves in a file where an exporter folded it or rewrote it as arithmetic."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph.affine import channel_vector
from passes.graph.editing import constant_value, is_constant, is_op, name_of, node_titles, rank, sole_consumer
from passes.graph.operators import ELEMENTWISE, LINEAR, MOVEMENTS, NORMALIZATIONS

# What exporters call the result: tf2onnx keeps the name of the normalization's output and calls the weights
# `..._fused_bn`; torch's newer exporter keeps the module's class in the node's metadata.
_NORM_IN_NAME = re.compile(r"batch_?norm|fused_?bn", re.IGNORECASE)
# torch's TorchScript exporter calls parameters by their place in the module (`conv1.weight`). Where it folds a batch
# normalization, weight and bias are both new tensors, and only such have these names.
_NEW_IN_TORCH = re.compile(r"onnx::(Conv|ConvTranspose)_\d+")
_WHOLE_FORM = 3  # operators from which on a chain is no mere rescaling of an output: (x - mean) / std · gamma + beta
_OTHER_NORMS = NORMALIZATIONS - {"BatchNormalization"} | {"LpNormalization", "MeanVarianceNormalization"}


def folded_batch_norms(model: ir.Model) -> tuple[str, ...]:
    """Titles (`node_titles`) of nodes that hold a folded batch normalization, as far as the file shows it, in order.

    First the normalizations that were rewritten as arithmetic (`rewritten_batch_norms`). In a model without any
    BatchNormalization also the layers whose names the exporter took from one, or made up as it does when it folds. A
    bias alone says nothing: networks that never had a normalization have them everywhere.
    """
    titles = node_titles(model.graph)
    rewritten = set(_rewritten(model))
    intact = any(is_op(node, "BatchNormalization") for node in model.graph)
    return tuple(titles[node] for node in model.graph if node in rewritten or (not intact and _named_after_norm(node)))


def rewritten_batch_norms(model: ir.Model) -> tuple[str, ...]:
    """Titles of the first node of each chain of Mul, Div, Add, Sub by per-channel constants beside a convolution.

    A chain counts when it both scales and shifts, and follows a layer with weights or goes to one, or to Relu or Clip.
    Three kinds look alike and do not count: the normalization of the image, whose chain starts at a graph input; the
    last step of a layer, group or instance normalization; and the rescaling of an output to its unit.
    """
    titles = node_titles(model.graph)
    return tuple(titles[node] for node in _rewritten(model))


def absence_in_words(model: ir.Model) -> str:
    """A clause on a model for which `read_batch_norms` finds nothing: what became of them, as far as it can be seen."""
    titles = node_titles(model.graph)
    computed = [titles[node] for node in model.graph if is_op(node, "BatchNormalization")]
    if computed:
        return f"the graph computes them instead of holding them ({_some(computed)})"
    if folded := folded_batch_norms(model):
        return f"the model holds no BatchNormalization: it was folded at export (seen at {_some(folded)})"
    return (
        "the model holds no BatchNormalization; whether one was folded at export or the network never had any cannot "
        "be told from the file"
    )


def _some(titles: Sequence[str]) -> str:
    return ", ".join(titles[:3]) + (", ..." if len(titles) > 3 else "")


def _named_after_norm(node: ir.Node) -> bool:
    if not is_op(node, *LINEAR):
        return False
    weights = [name_of(value) for value in node.inputs[1:3]]
    if len(weights) == 2 and all(_NEW_IN_TORCH.fullmatch(name) for name in weights):
        return True
    told = [*weights, name_of(node.outputs[0]), *node.metadata_props.values()]
    return any(_NORM_IN_NAME.search(text) for text in told)


def _rewritten(model: ir.Model) -> Iterator[ir.Node]:
    """The first node of each chain that is a batch normalization."""
    inside: set[ir.Node] = set()
    for node in model.graph:
        if node in inside or not _per_channel(node):
            continue
        chain = list(_chain(node))
        inside.update(chain)
        if _scales(chain) and _shifts(chain) and _beside_weights(chain) and not _rescales_output(chain):
            yield node


def _operand(node: ir.Node) -> tuple[ir.Value, NDArray[Any]] | None:
    """The (data, constant) pair of a two-operand node, None where there is no such pair."""
    for data, other in ((0, 1), (1, 0)):
        value, constant = node.inputs[data], constant_value(node.inputs[other])
        if value is not None and constant is not None and not is_constant(value):
            return value, constant
    return None


def _per_channel(node: ir.Node) -> bool:
    if not is_op(node, *ELEMENTWISE):
        return False
    pair = _operand(node)
    if pair is None:
        return False
    value, constant = pair
    axes = rank(value) or rank(node.outputs[0]) or constant.ndim
    # A scalar is an activation's or an attention's constant, a vector over the channels is a normalization's.
    return constant.size > 1 and channel_vector(constant, axes, constant.size) is not None


def _chain(first: ir.Node) -> Iterator[ir.Node]:
    node: ir.Node | None = first
    while node is not None and _per_channel(node):
        yield node
        node = sole_consumer(node.outputs[0])


def _scales(chain: list[ir.Node]) -> bool:
    return any(is_op(node, "Mul", "Div") for node in chain)


def _shifts(chain: list[ir.Node]) -> bool:
    return any(is_op(node, "Add", "Sub") for node in chain)


def _rescales_output(chain: list[ir.Node]) -> bool:
    return len(chain) < _WHOLE_FORM and chain[-1].outputs[0].is_graph_output()


def _beside_weights(chain: list[ir.Node]) -> bool:
    pair = _operand(chain[0])
    assert pair is not None
    source = _before_movements(pair[0])
    producer = source.producer()
    if producer is None or _normalizes(producer):
        return False
    after = [use.node for use in chain[-1].outputs[0].uses()]
    return is_op(producer, *LINEAR) or any(is_op(node, *LINEAR, "Relu", "Clip") for node in after)


def _before_movements(value: ir.Value) -> ir.Value:
    """The value that movements and changes of type brought here: the image, or what some node computed."""
    while (producer := value.producer()) is not None and is_op(producer, *MOVEMENTS, "Cast"):
        source = producer.inputs[0]
        if source is None:
            break
        value = source
    return value


def _normalizes(node: ir.Node) -> bool:
    """Whether `node` is another normalization, or its division: a quotient or product of two computed values."""
    computed = all(value is not None and not is_constant(value) for value in node.inputs)
    return is_op(node, *_OTHER_NORMS) or (is_op(node, "Div", "Mul") and computed)
