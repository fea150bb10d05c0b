"""Where a parameter takes the place of its initializer in the step, and what of it goes back to the file."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.graph.editing import constant_value, name_of
from passes.training.parameters import Parameter, reader_of
from passes.training.tape import Tape

_CLIPPED = (ir.DataType.INT8, ir.DataType.UINT8)
"""Integer types of a weight that may hold fewer bits than they have."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Where an integer weight lay: the scale and zero point of its DequantizeLinear, and the integers it may take.

    limits: None where these are all of its type.
    """

    scale: ir.Value
    zero: ir.Value | None
    axis: int
    dtype: ir.DataType
    limits: tuple[int, int] | None


def open_parameter(tape: Tape, parameter: Parameter, value: ir.Value) -> Opened | None:
    """Has the graph read `value` instead of the initializer; integers through their quantizer. The nodes that this
    takes stand at the end: sort the graph. None where nothing was quantized."""
    old = tape.graph.initializers[parameter.name]
    if parameter.kind in ("float", "scale"):
        # its own readers alone: the power of two below does not read it
        uses = list(old.uses())
        new = _power(tape, value) if parameter.kind == "scale" else value
        for use in uses:
            use.node.replace_input_with(use.idx, new)
        return None
    reader = reader_of(old)
    assert reader is not None and old.const_value is not None and old.dtype is not None
    scale = reader.inputs[1]
    assert scale is not None
    found = Opened(
        scale=scale,
        zero=reader.inputs[2] if len(reader.inputs) > 2 else None,
        axis=reader.attributes.get_int("axis", 1),
        dtype=old.dtype,
        limits=_limits(old.const_value.numpy(), reader) if old.dtype in _CLIPPED else None,
    )
    if parameter.kind == "accumulator":
        numbers = tape.op("Mul", _steps(tape, value, scale), scale)
        numbers.dtype, numbers.shape = ir.DataType.FLOAT, reader.outputs[0].shape
        reader.outputs[0].replace_all_uses_with(numbers)
        tape.graph.remove(reader)
    else:
        reader.replace_input_with(0, _quantized(tape, value, found, scale))
    return found


def next_initializer(tape: Tape, parameter: Parameter, opened: Opened | None, new: Mapping[str, ir.Value]) -> ir.Value:
    """What the initializer becomes. new: by name, what all parameters have become."""
    value = new[parameter.name]
    if parameter.kind == "scale":
        return _power(tape, value)
    if opened is None:
        return value
    if parameter.kind == "accumulator":
        return tape.op("Cast", _steps(tape, value, opened.scale), to=int(ir.DataType.INT32))
    name = name_of(opened.scale)
    scale = _power(tape, new[name]) if name in new else opened.scale
    return _quantized(tape, value, opened, scale)


def _power(tape: Tape, value: ir.Value) -> ir.Value:
    found = tape.op("Pow", tape.constant(2.0), value)
    found.dtype, found.shape = ir.DataType.FLOAT, value.shape
    return found


def _steps(tape: Tape, value: ir.Value, scale: ir.Value) -> ir.Value:
    found = tape.op("Div", value, scale)
    rounded = tape.op("Round", found)
    for one in (found, rounded):
        one.dtype, one.shape = ir.DataType.FLOAT, value.shape
    return rounded


def _quantized(tape: Tape, value: ir.Value, grid: Opened, scale: ir.Value) -> ir.Value:
    kind = int(grid.dtype) if grid.zero is None else None
    found = tape.op("QuantizeLinear", value, scale, grid.zero, axis=grid.axis, output_dtype=kind)
    found.dtype, found.shape = grid.dtype, value.shape
    if grid.limits is None:
        return found
    low, high = (tape.constant(end, grid.dtype.numpy().type) for end in grid.limits)
    clipped = tape.op("Clip", found, low, high)
    clipped.dtype, clipped.shape = grid.dtype, value.shape
    return clipped


def _limits(integers: NDArray[np.generic], reader: ir.Node) -> tuple[int, int] | None:
    """The integers of the bits that these take, beside their zero point; None where they need all of the type.

    A file does not say how many bits a weight has in a type of eight.
    """
    given = constant_value(reader.inputs[2]) if len(reader.inputs) > 2 else None
    zeros = np.zeros(1, np.int64) if given is None else np.unique(given.astype(np.int64))
    if zeros.size > 1 or not integers.size:
        return None
    zero = int(zeros[0])
    low, high = int(integers.min()) - zero, int(integers.max()) - zero
    half = 1 << max(high.bit_length(), (-low - 1).bit_length() if low < 0 else 0)
    ends = (-128, 127) if integers.dtype == np.int8 else (0, 255)
    limits = max(zero - half, ends[0]), min(zero + half - 1, ends[1])
    return None if limits == ends else limits
