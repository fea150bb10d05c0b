"""`BlockWeights`: weights of MatMul and Gemm as integers with a scale for every block, beside float activations."""

import logging
from collections.abc import Callable
from functools import lru_cache

import ml_dtypes
import numpy as np
import onnx_ir as ir

from passes.graph.editing import FreshNames, name_of
from passes.quantize.blocks import BlockLayer, BlockWeight, Choose, block_layers

logger = logging.getLogger(__name__)

FIRST_OPSET = 21  # of a DequantizeLinear with blocks, and of int4


class BlockWeights(ir.passes.InPlacePass):
    """Weights of layers become integers and a DequantizeLinear with blocks.

    1. Of a MatMul, in front of it: ONNX Runtime makes MatMulNBits of the two.
    2. A Gemm becomes a MatMul, and an Add where it has a bias, for there is no such kernel of Gemm.

    Integers of up to 4 bits are int4, others int8. Nothing is computed until the model is written: each weight is then
    read, rounded and written before the next one is read, so that memory holds one of them, however large the model.

    Args:
        bits: of the integers. block: how many inputs share a scale.
        choose: what is written of a layer.
    """

    def __init__(self, bits: int, block: int, choose: Choose) -> None:
        self.bits, self.block, self.choose = bits, block, choose

    def requires(self, model: ir.Model) -> None:
        """The opset has to know blocks."""
        if model.opset_imports[""] < FIRST_OPSET:
            raise ir.passes.PreconditionError(f"DequantizeLinear has blocks from opset {FIRST_OPSET} on")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        graph, names = model.graph, FreshNames(model.graph)
        layers = list(block_layers(graph))
        nodes = {name_of(node): node for node in graph}
        dequantized: dict[tuple[str, bool], ir.Value] = {}
        for layer in layers:
            key = layer.weight, layer.transposed
            if key not in dequantized:
                dequantized[key] = self._dequantized(graph, names, layer, before=nodes[layer.node])
            _set_weight(graph, names, nodes[layer.node], dequantized[key])
            logger.debug("%s: %d bits in blocks of %d", layer.node, self.bits, self.block)
        for name in {layer.weight for layer in layers}:
            value = graph.initializers[name]
            if not value.uses() and not value.is_graph_output():
                del graph.initializers[name]
        return ir.passes.PassResult(model, modified=bool(layers))

    def _dequantized(self, graph: ir.Graph, names: FreshNames, layer: BlockLayer, *, before: ir.Node) -> ir.Value:
        source = graph.initializers[layer.weight].const_value
        assert source is not None

        @lru_cache(maxsize=1)  # integers and scales are written one right after the other
        def chosen() -> BlockWeight:
            return self.choose(layer, layer.matrix(np.asarray(source.numpy(), np.float32)))

        def integers() -> ir.TensorProtocol:
            found = chosen().integers
            return ir.tensor(found.astype(ml_dtypes.int4) if self.bits <= 4 else found)

        def scales() -> ir.TensorProtocol:
            found = chosen().scales
            chosen.cache_clear()
            return ir.tensor(found)

        blocks = -(-layer.depth // self.block)
        kind = ir.DataType.INT4 if self.bits <= 4 else ir.DataType.INT8
        inputs = [
            _lazy(graph, names(f"{layer.weight}_quantized"), integers, kind, (layer.depth, layer.width)),
            _lazy(graph, names(f"{layer.weight}_scale"), scales, ir.DataType.FLOAT, (blocks, layer.width)),
        ]
        node = ir.node(
            "DequantizeLinear",
            inputs,
            {"axis": 0, "block_size": self.block},
            name=names(f"{layer.weight}_dequantize"),
            metadata_props={"dfq.bits": f"s{self.bits}"},
        )
        output = node.outputs[0]
        output.name = names(f"{layer.weight}_dequantized")
        output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([layer.depth, layer.width])
        graph.insert_before(before, node)
        return output


def _lazy(
    graph: ir.Graph, name: str, make: Callable[[], ir.TensorProtocol], kind: ir.DataType, shape: tuple[int, int]
) -> ir.Value:
    tensor = ir.LazyTensor(make, kind, ir.Shape(shape), name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(kind), shape=ir.Shape(shape))
    graph.register_initializer(value)
    return value


def _set_weight(graph: ir.Graph, names: FreshNames, node: ir.Node, weight: ir.Value) -> None:
    if node.op_type == "MatMul":
        node.replace_input_with(1, weight)
        return
    output, bias = node.outputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    product = ir.node("MatMul", [node.inputs[0], weight], name=names(f"{node.name}_matmul"))
    last = product
    new = [product]
    if bias is not None:
        product.outputs[0].name = names(f"{name_of(output)}_product")
        product.outputs[0].type, product.outputs[0].shape = output.type, output.shape
        last = ir.node("Add", [product.outputs[0], bias], name=names(f"{node.name}_add"))
        new.append(last)
    result, name = last.outputs[0], name_of(output)
    result.type, result.shape = output.type, output.shape
    graph.insert_before(node, new)
    for use in list(output.uses()):
        use.node.replace_input_with(use.idx, result)
    for index, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[index] = result
    graph.remove(node, safe=True)
    result.name = name
