"""Other numbers in the place of a graph's constants; everything else of it stays as it is."""

import logging
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from jaxtyping import Float32
from numpy.typing import NDArray

from passes.graph.editing import IDENTITIES, is_op, name_of

logger = logging.getLogger(__name__)


def named_constants(model: ir.Model) -> dict[str, Float32[NDArray[np.float32], "..."]]:
    """Float32 constants of the main graph by name: initializers, outputs of Constant nodes, and those of Identity nodes
    that read either, which torch writes where several parameters are equal."""
    values = [*model.graph.initializers.values(), *(node.outputs[0] for node in model.graph if _is_constant(node))]
    tensors = {name_of(value): tensor for value in values if (tensor := _tensor(value)) is not None}
    return {name: tensor.numpy() for name, tensor in tensors.items() if tensor.dtype == ir.DataType.FLOAT}


class WriteInitializers(ir.passes.InPlacePass):
    """Replaces the numbers of constants.

    1. An initializer keeps its name and gets the array.
    2. The node that gives a constant of that name becomes an initializer: one array cannot serve several any more.

    Args:
        arrays: By name, each of the shape of the constant that it replaces.
    """

    def __init__(self, arrays: Mapping[str, Float32[NDArray[np.float32], "..."]]) -> None:
        self.arrays = arrays

    def requires(self, model: ir.Model) -> None:
        """Each name is that of a constant of the same shape."""
        found = named_constants(model)
        for name, array in self.arrays.items():
            if name not in found or found[name].shape != array.shape:
                raise ir.passes.PreconditionError(f"the graph has no float32 constant {name!r} of shape {array.shape}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        nodes = {name_of(node.outputs[0]): node for node in model.graph if _is_constant(node)}
        for name, array in self.arrays.items():
            tensor = ir.Tensor(np.ascontiguousarray(array), name=name)
            if name in nodes:
                _become_initializer(model.graph, nodes[name], tensor)
            else:
                model.graph.initializers[name].const_value = tensor
            logger.debug("%s gets other numbers", name)
        return ir.passes.PassResult(model, modified=bool(self.arrays))


def _is_constant(node: ir.Node) -> bool:
    return is_op(node, "Constant", "Identity") and _tensor(node.outputs[0]) is not None


def _tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Of an initializer, or of what Constant and Identity nodes make of one. It is only read: its own name stays."""
    for _ in range(IDENTITIES):
        node = None if value is None else value.producer()
        if node is None or not is_op(node, "Identity"):
            break
        value = node.inputs[0]
    if value is None or (node := value.producer()) is None:
        return None if value is None else value.const_value
    given = node.attributes.get("value") if is_op(node, "Constant") else None
    return None if given is None else given.as_tensor()


def _become_initializer(graph: ir.Graph, node: ir.Node, tensor: ir.TensorProtocol) -> None:
    old = node.outputs[0]
    new = ir.Value(name=old.name, type=old.type, shape=old.shape, const_value=tensor)
    old.replace_all_uses_with(new)
    graph.remove(node, safe=True)
    graph.register_initializer(new)
