"""`read_quantizers`: the quantizers of a QDQ graph."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph.editing import constant_value, is_constant, is_op, name_of
from passes.graph.operators import MOVEMENTS
from passes.quantize.quantizers import Grid, QuantizedConstant, Quantizer, Quantizers

DOMAINS = ("", "ai.onnx", "com.microsoft")  # ONNX Runtime's own take widths that came late to ONNX
CARRIERS = MOVEMENTS | {"MaxPool"}
"""What may stand between Quantize and Dequantize: it does the same to floats."""


def is_quantize(node: ir.Node | None) -> bool:
    """Whether a node is a QuantizeLinear."""
    return node is not None and node.op_type == "QuantizeLinear" and node.domain in DOMAINS


def is_dequantize(node: ir.Node | None) -> bool:
    """Whether a node is a DequantizeLinear."""
    return node is not None and node.op_type == "DequantizeLinear" and node.domain in DOMAINS


def read_quantizers(graph: ir.Graph) -> Quantizers:
    """The quantizers of a QDQ graph with inferred types.

    Raises:
        ValueError: Something computes on integers, or computes a scale; the message says what.
    """
    activations, constants = [], []
    for node in graph:
        if is_quantize(node) and not is_constant(node.inputs[0]):
            activations.append(_quantizer(node))
        elif is_dequantize(node):
            source = node.inputs[0]
            before = None if source is None else source.producer()
            original = constant_value(before.inputs[0]) if before is not None and is_quantize(before) else None
            integers = constant_value(source)
            if original is not None and before is not None:
                grid = _grid(before)
                constants.append(_constant(node, grid.integers(original).astype(np.int64), original))
            elif integers is not None:
                constants.append(_constant(node, np.asarray(integers).astype(np.int64), None))
    return Quantizers(activations=tuple(activations), constants=tuple(constants))


def _constant(node: ir.Node, integers: NDArray[np.int64], original: NDArray[np.generic] | None) -> QuantizedConstant:
    grid = _grid(node)
    return QuantizedConstant(
        value=name_of(node.outputs[0]),
        grid=grid,
        integers=integers,
        numbers=grid.numbers(integers).astype(np.float32),
        original=None if original is None else original.astype(np.float32),
    )


def _quantizer(node: ir.Node) -> Quantizer:
    grid, ends = _grid(node), list(ends_of(node))
    clip = clip_behind(node)
    bounds: tuple[float | None, float | None] = (None, None)
    if clip is not None:
        low, high = _bounds(clip, grid)
        narrow = replace(grid, low=low, high=high)
        if not _is_of_bits(narrow, grid):
            least, greatest = narrow.ends
            bounds = (least if low > grid.low else None, greatest if high < grid.high else None)
        grid = narrow
    if not ends:
        raise ValueError(f"nothing dequantizes {name_of(node.outputs[0])!r}, which {_title(node)} quantizes")
    return Quantizer(
        value=name_of(node.outputs[0]), source=name_of(node.inputs[0]), grid=grid, back=_grid(ends[0]), bounds=bounds
    )


def _is_of_bits(narrow: Grid, grid: Grid) -> bool:
    """Whether a Clip on integers only makes them narrower: all of so many bits, as the container's sign has them."""
    bits = narrow.bits
    if grid.low < 0:
        return (narrow.low, narrow.high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    middle = int(grid.zero.reshape(-1)[0])
    signed = (middle - 2 ** (bits - 1), middle + 2 ** (bits - 1) - 1)
    return (narrow.low, narrow.high) in ((0, 2**bits - 1), signed)


def clip_behind(node: ir.Node) -> ir.Node | None:
    uses = [use.node for use in node.outputs[0].uses()]
    return uses[0] if len(uses) == 1 and is_op(uses[0], "Clip") else None


def _bounds(clip: ir.Node, grid: Grid) -> tuple[int, int]:
    ends = [constant_value(value) for value in (*clip.inputs[1:3], None, None)[:2]]
    low, high = ends
    return (
        grid.low if low is None else max(grid.low, int(low.reshape(-1)[0])),
        grid.high if high is None else min(grid.high, int(high.reshape(-1)[0])),
    )


def ends_of(node: ir.Node) -> Iterator[ir.Node]:
    """The DequantizeLinear nodes behind a QuantizeLinear."""
    clip = clip_behind(node)
    waiting = [node.outputs[0] if clip is None else clip.outputs[0]]
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            raise ValueError(f"the output {name_of(value)!r} leaves the graph in integers")
        for use in value.uses():
            if is_dequantize(use.node):
                yield use.node
            elif is_op(use.node, *CARRIERS) and use.idx == 0:
                waiting.extend(use.node.outputs)
            else:
                raise ValueError(f"{_title(use.node)} reads the integers of {_title(node)}")


def _grid(node: ir.Node) -> Grid:
    scale = constant_value(node.inputs[1])
    zero = constant_value(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None or (zero is None and len(node.inputs) > 2 and node.inputs[2] is not None):
        raise ValueError(f"{_title(node)} computes its scale or zero point while it runs")
    integers = node.inputs[0] if is_dequantize(node) else node.outputs[0]
    kinds = [value.dtype for value in (*node.inputs[2:3], integers) if value is not None and value.dtype is not None]
    given = node.attributes.get_int("output_dtype", 0) if is_quantize(node) else 0
    kind = kinds[0] if kinds else ir.DataType(given or ir.DataType.UINT8)
    if not kind.is_integer():
        raise ValueError(f"{_title(node)} quantizes to {kind.name.lower()}, which is no integer type")
    low, high = _range(kind)
    return Grid(
        scale=np.asarray(scale, np.float64),
        zero=np.zeros(np.shape(scale), np.int64) if zero is None else np.asarray(zero).astype(np.int64),
        low=low,
        high=high,
        axis=node.attributes.get_int("axis", 1),
        block=node.attributes.get_int("block_size", 0),
    )


def _range(kind: ir.DataType) -> tuple[int, int]:
    half = 2 ** (kind.bitwidth - 1)
    return (-half, half - 1) if kind.is_signed() else (0, 2 * half - 1)


def _title(node: ir.Node) -> str:
    return f"{node.op_type} {name_of(node) or name_of(node.outputs[0])!r}"
