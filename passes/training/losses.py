"""Losses, with their gradients in closed form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import onnx_ir as ir

from passes.graph.editing import is_op
from passes.quantize.reading import is_dequantize, is_quantize
from passes.training.tape import Tape

Loss: TypeAlias = Literal["cross-entropy", "mse"]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A loss in a graph. value: (). seeds: its gradient by what it is of. target: the input that it compares with."""

    value: ir.Value
    seeds: Mapping[ir.Value, ir.Value]
    target: ir.Value


def add_loss(tape: Tape, output: ir.Value, loss: Loss) -> Judged:
    """Adds a loss, the mean over all that is compared.

    cross-entropy: of logits (N, classes, ...) with `labels`, int64 (N, ...); of an output that is a Softmax, quantized
    or not, with what goes into it, for the logarithm of a quantized zero is none. mse: of the output with `target`.
    """
    return _cross_entropy(tape, logits_of(output)) if loss == "cross-entropy" else _squares(tape, output)


def logits_of(output: ir.Value) -> ir.Value:
    """What goes into the Softmax that ends the graph; the output itself where none does."""
    value: ir.Value | None = output
    while value is not None and (node := value.producer()) is not None:
        if is_op(node, "Softmax", "LogSoftmax"):
            return node.inputs[0] or output
        if not (is_quantize(node) or is_dequantize(node) or is_op(node, "Clip", "Identity")):
            break
        value = node.inputs[0]
    return output


def _cross_entropy(tape: Tape, logits: ir.Value) -> Judged:
    """-mean log p(label), and by the logits (p - [label]) / count."""
    shape = [] if logits.shape is None else list(logits.shape)
    if len(shape) < 2 or not isinstance(shape[1], int):
        raise ValueError("cross-entropy needs an output (N, classes, ...) of known classes; take mse")
    labels = ir.val("labels", ir.DataType.INT64, ir.Shape([shape[0], *shape[2:]]))
    hot = tape.op("OneHot", labels, tape.integers(shape[1]), tape.constant([0.0, 1.0]), axis=1)
    logarithms = tape.op("LogSoftmax", logits, axis=1)
    share = tape.op("Reciprocal", tape.op("Cast", tape.op("Size", labels), to=int(ir.DataType.FLOAT)))
    total = tape.op("ReduceSum", tape.op("Mul", hot, logarithms), keepdims=0)
    seed = tape.op("Mul", tape.op("Sub", tape.op("Exp", logarithms), hot), share)
    return Judged(value=tape.op("Neg", tape.op("Mul", total, share)), seeds={logits: seed}, target=labels)


def _squares(tape: Tape, output: ir.Value) -> Judged:
    """mean (y - t)², and by the output 2 (y - t) / count."""
    target = ir.val("target", ir.DataType.FLOAT, output.shape)
    error = tape.op("Sub", output, target)
    share = tape.op("Reciprocal", tape.op("Cast", tape.op("Size", target), to=int(ir.DataType.FLOAT)))
    total = tape.op("ReduceSum", tape.op("Mul", error, error), keepdims=0)
    seed = tape.op("Mul", tape.op("Add", error, error), share)
    return Judged(value=tape.op("Mul", total, share), seeds={output: seed}, target=target)
