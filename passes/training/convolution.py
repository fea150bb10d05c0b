"""Convolutions: an input's gradient is a transposed convolution, a weight's a convolution over the batch.

Both are operators that every runtime has fast kernels for. (An im2col in elementary operators, as onnxsim's compiler
writes it, takes a ResNet-8 several times as long, and tables of indices as large as its activations.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from passes.graph.padding import same_pads
from passes.training.tape import Gradients, Outputs, Table, Tape


@dataclass(frozen=True, kw_only=True)
class Window:
    """How a kernel moves over the spatial axes: one number for each, pads (begin, end)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @property
    def pads(self) -> list[int]:
        """As the attribute has them."""
        return [*self.begin, *self.end]

    def rest(self, large: Sequence[int], small: Sequence[int]) -> list[int]:
        """What a transposed convolution of `small` lacks of `large`: cells that no step of the stride reaches."""
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        reach = [(n - 1) * s + span for n, s, span in zip(small, self.strides, spans, strict=True)]
        return [n + b + e - r for n, b, e, r in zip(large, self.begin, self.end, reach, strict=True)]


def window_of(tape: Tape, node: ir.Node, kernel: Sequence[int], large: Sequence[int], small: Sequence[int]) -> Window:
    """Read from a node's attributes, `auto_pad` as the pads that it comes to.

    Args:
        tape: Of the graph.
        node: A convolution or a pool.
        kernel: Its sizes.
        large, small: Spatial sizes of what it reads and gives; of a ConvTranspose, of what it gives and reads.
    """
    axes = len(kernel)
    strides = tuple(node.attributes.get_ints("strides", [1] * axes))
    dilations = tuple(node.attributes.get_ints("dilations", [1] * axes))
    pads = tuple(node.attributes.get_ints("pads", [0] * 2 * axes))
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = same_pads(zip(large, small, kernel, strides, dilations, strict=True), upper=mode == "SAME_UPPER")
    elif mode == "VALID":
        pads = (0,) * 2 * axes
    if min(pads) < 0:
        raise tape.refuse(node, "it has negative pads")
    return Window(kernel=tuple(kernel), strides=strides, dilations=dilations, begin=pads[:axes], end=pads[axes:])


def scattered(
    tape: Tape, small: ir.Value, weight: ir.Value, window: Window, rest: Sequence[int], group: int
) -> ir.Value:
    """The transposed convolution of `small`, as large as what the convolution read."""
    return tape.op(
        "ConvTranspose",
        small,
        weight,
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
        output_padding=list(rest),
        kernel_shape=window.kernel,
        group=group,
    )


def _conv(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    g, (x, weight, *_) = given[0], node.inputs
    assert g is not None and x is not None and weight is not None
    group = node.attributes.get_int("group", 1)
    large, small = tape.known(node, x, 2), tape.known(node, node.outputs[0], 2)
    window = window_of(tape, node, tape.known(node, weight, 2), large, small)
    return (
        lambda: scattered(tape, g, weight, window, window.rest(large, small), group),
        lambda: _of_weight(tape, x, g, tape.known(node, weight), window, large, window.rest(large, small), group),
        lambda: _of_bias(tape, g, len(large)),
    )


def _conv_transpose(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """The other way round: what it gives is large, and what it reads small."""
    g, (x, weight, *_) = given[0], node.inputs
    assert g is not None and x is not None and weight is not None
    if node.attributes.get_ints("output_shape", []):
        raise tape.refuse(node, "it has an output_shape; give it pads and output_padding")
    group = node.attributes.get_int("group", 1)
    large, small = tape.known(node, node.outputs[0], 2), tape.known(node, x, 2)
    window = window_of(tape, node, tape.known(node, weight, 2), large, small)
    rest = window.rest(large, small)

    def of_input() -> ir.Value:
        return tape.op(
            "Conv",
            g,
            weight,
            strides=window.strides,
            dilations=window.dilations,
            pads=window.pads,
            kernel_shape=window.kernel,
            group=group,
        )

    return (
        of_input,
        lambda: _of_weight(tape, g, x, tape.known(node, weight), window, large, rest, group),
        lambda: _of_bias(tape, g, len(large)),
    )


def _of_weight(
    tape: Tape,
    large: ir.Value,
    small: ir.Value,
    shape: Sequence[int],
    window: Window,
    cells: Sequence[int],
    rest: Sequence[int],
    group: int,
) -> ir.Value:
    """dW[o, i] = Σₙ large[n, i] ∗ small[n, o]: samples take the part of channels, `small` that of the kernel.

    Where the convolution strode, this one is dilated, and the other way round. The channels of a group are the samples
    of the new batch, and groups stay groups.

    Args:
        tape: Of the graph.
        large: (N, g·i, ...).
        small: (N, g·o, ...).
        shape: (g·o, i, ...) of the weight.
        window, cells, rest: Of the convolution; cells: spatial sizes of `large`.
        group: g.
    """
    spatial = list(range(2, len(shape)))
    wide = tape.op("Reshape", large, tape.integers(0, group, shape[1], *cells))
    wide = tape.op("Transpose", wide, perm=[2, 1, 0, *(axis + 1 for axis in spatial)])
    wide = tape.op("Reshape", wide, tape.integers(shape[1], -1, *cells))  # (i, g·N, ...)
    kernel = tape.op("Transpose", small, perm=[1, 0, *spatial])  # (g·o, N, ...)
    found = tape.op(
        "Conv", wide, kernel, strides=window.dilations, dilations=window.strides, pads=window.pads, group=group
    )
    found = tape.op("Transpose", found, perm=[1, 0, *spatial])
    if all(cut < step for cut, step in zip(rest, window.dilations, strict=True)):
        return found
    # cells at the end that no step reached look like more taps
    starts, ends = tape.integers(*[0] * len(spatial)), tape.integers(*window.kernel)
    return tape.op("Slice", found, starts, ends, tape.integers(*spatial))


def _of_bias(tape: Tape, g: ir.Value, axes: int) -> ir.Value:
    return tape.op("ReduceSum", g, tape.integers(0, *range(2, 2 + axes)), keepdims=0)


RULES: Table = {"Conv": _conv, "ConvTranspose": _conv_transpose}
