"""Conditions of operator rules that need code, by the names that `OperatorRule.checks` lists."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.graph.editing import constant_value, rank, static_dims
from passes.lint.quantized_graph import Grid, OutputQuantization
from passes.lint.written_as_integers import follows_float_concat, joins_constant_in_float, written_as_integers
from passes.quantize.grid import is_power_of_two


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """A node and the quantization around it.

    inputs: grids of its data inputs. bias: the form of its bias, as in `OperatorRule.bias`. output: what follows it.
    known: of values of the graph, what `written_as_integers` found; it is added to.
    """

    node: ir.Node
    inputs: tuple[Grid | None, ...]
    bias: str
    bias_value: ir.Value | None
    bias_grid: Grid | None
    output: OutputQuantization
    known: dict[ir.Value, bool | None]


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """Why a node is not computed on integers, and what to change.

    refused: the runtime takes the node for an integer one, and then fails or computes other numbers.
    """

    reason: str
    advice: str
    refused: bool = False


Check = Callable[[Site], Obstacle | None]


def _output_axis(site: Site) -> Obstacle | None:
    """Scales per channel have to lie along the output channels."""
    weight = site.inputs[1]
    if weight is None or weight.axis is None or weight.node is None or in_blocks(weight):
        return None
    axes = rank(weight.node.inputs[0])
    axis = weight.axis + axes if weight.axis < 0 and axes is not None else weight.axis
    match site.node.op_type:
        case "Conv":
            expected: int | None = 0
        case "ConvTranspose":
            expected = 1
        case "Gemm":
            expected = 0 if site.node.attributes.get_int("transB", 0) else 1
        case _:
            expected = None if axes is None else axes - 1
    if expected is None or axis == expected:
        return None
    return Obstacle(
        reason=f"the scales of its weight lie along axis {axis} and not along the output channels, axis {expected}",
        advice=f"quantize the weight per tensor, or along axis {expected}",
    )


def in_blocks(grid: Grid) -> bool:
    return grid.scale is not None and grid.scale.ndim > 1 and grid.scale.size > 1


def _no_blocks(site: Site) -> Obstacle | None:
    weight = site.inputs[1]
    if weight is None or not in_blocks(weight):
        return None
    return Obstacle(reason="its weight has a scale for every block", advice="quantize the weight per output channel")


def _no_blocks_unseen(site: Site) -> Obstacle | None:
    return _unseen(_no_blocks(site))


def _per_tensor(site: Site) -> Obstacle | None:
    """Activations have one scale each."""
    grids = [*(grid for grid in site.inputs if grid is not None and not grid.constant), site.output.grid]
    if all(grid is None or grid.scale is None or grid.scale.size == 1 for grid in grids):
        return None
    reason = "its input or its output has one scale per channel"
    return Obstacle(reason=reason, advice="quantize activations with one scale for the whole tensor")


def _per_tensor_input(site: Site) -> Obstacle | None:
    grid = site.inputs[0]
    if grid is None or grid.scale is None or grid.scale.size == 1:
        return None
    reason = "its input has one scale per channel"
    return Obstacle(reason=reason, advice="quantize activations with one scale for the whole tensor")


def _per_tensor_unseen(site: Site) -> Obstacle | None:
    return _unseen(_per_tensor(site))


def _output_axis_unseen(site: Site) -> Obstacle | None:
    return _unseen(_output_axis(site))


def _unseen(found: Obstacle | None) -> Obstacle | None:
    """The same obstacle where the runtime does not look."""
    if found is None:
        return None
    reason = f"{found.reason}, which the runtime does not look at: it fails, or computes other numbers"
    return Obstacle(reason=reason, advice=found.advice, refused=True)


def _output_axis_unless_float_bias(site: Site) -> Obstacle | None:
    """The same, but a runtime that quantizes float biases itself looks at the axis first, and leaves the node alone."""
    return _output_axis(site) if site.bias == "float" else _output_axis_unseen(site)


def _bias_matches(site: Site) -> bool:
    """Whether an int32 bias has the scale of input times weight, within what ONNX Runtime allows."""
    x, weight, bias = site.inputs[0], site.inputs[1], site.bias_grid
    if bias is None or x is None or weight is None or x.scale is None or weight.scale is None or bias.scale is None:
        return True
    product = x.scale.astype(np.float64).reshape(-1) * weight.scale.astype(np.float64).reshape(-1)
    if bias.scale.size not in (1, product.size) and product.size != 1:
        return False
    return bool(np.isclose(bias.scale.astype(np.float64).reshape(-1), product, rtol=0.01, atol=1e-6).all())


_BIAS_ADVICE = "write the bias in float, or as int32 with the scale of the input times that of the weight"


def _bias_scale(site: Site) -> Obstacle | None:
    if _bias_matches(site):
        return None
    return Obstacle(reason="the scale of its int32 bias is not input scale times weight scale", advice=_BIAS_ADVICE)


def _bias_scale_unseen(site: Site) -> Obstacle | None:
    """The integer kernel adds the bias to the accumulator whatever scale the file gives it."""
    if _bias_matches(site):
        return None
    return Obstacle(
        reason="the scale of its int32 bias is not input scale times weight scale, which the runtime does not look at: "
        "it adds another bias",
        advice=_BIAS_ADVICE,
        refused=True,
    )


def _float_needs_output(site: Site) -> Obstacle | None:
    """The runtime quantizes a float weight or bias itself only in front of a QuantizeLinear."""
    weight = site.inputs[1]
    parts = ["bias"] if site.bias == "float" else []
    if weight is not None and weight.container == "float":
        parts.append("weight")
    if site.output.grid is not None or not parts:
        return None
    return Obstacle(
        reason=f"its float {' and '.join(parts)} would be quantized only in front of a QuantizeLinear, "
        f"but {site.output.obstacle}",
        advice="put QuantizeLinear and DequantizeLinear behind it, or write the bias as int32",
    )


def _own_float_weight(site: Site) -> Obstacle | None:
    """The runtime quantizes a float weight itself only where it stands in the graph of the node."""
    weight, value = site.inputs[1], site.node.inputs[1]
    if weight is None or weight.container != "float" or value is None or value.graph is site.node.graph:
        return None
    return Obstacle(reason="its float weight stands outside of the body", advice="quantize the weight too")


def _row_bias(site: Site) -> Obstacle | None:
    array = constant_value(site.bias_value) if site.bias == "float" else None
    if array is None or array.ndim == 1:
        return None
    return Obstacle(
        reason=f"its float bias has {array.ndim} axes", advice="give the bias one axis, one number an output channel"
    )


def _beta_1(site: Site) -> Obstacle | None:
    beta = site.node.attributes.get_float("beta", 1.0)
    if beta == 1 or site.bias == "none":
        return None
    return Obstacle(reason=f"its beta is {beta:g}", advice="multiply the bias by beta, and set beta to 1")


def _symmetric(site: Site) -> Obstacle | None:
    grids = [*site.inputs, site.output.grid]
    for grid in grids:
        if grid is not None and grid.zero_point is not None and np.any(grid.zero_point):
            return Obstacle(
                reason=f"a zero point is {int(np.ravel(grid.zero_point)[np.argmax(np.ravel(grid.zero_point) != 0)])}",
                advice="quantize symmetrically, with zero points of 0",
                refused=True,
            )
    return None


def _symmetric_weight(site: Site) -> Obstacle | None:
    weight = site.inputs[1]
    if weight is None or weight.zero_point is None or not np.any(weight.zero_point):
        return None
    return Obstacle(reason="the zero point of its weight is not 0", advice="quantize the weight symmetrically, as int8")


def _symmetric_if_signed(site: Site) -> Obstacle | None:
    weight = site.inputs[1]
    return _symmetric_weight(site) if weight is not None and weight.container.startswith("int") else None


def _no_quantized_bias(site: Site) -> Obstacle | None:
    if site.bias in ("none", "float"):
        return None
    reason, advice = (
        f"its bias is {site.bias}, and Quantize/Dequantize on a bias is rejected",
        "write the bias in float",
    )
    return Obstacle(reason=reason, advice=advice, refused=True)


def _position(grid: Grid | None) -> int | None:
    """p of a scale 2**-p for the whole tensor; None for any other."""
    if grid is None or grid.scale is None or grid.scale.size != 1 or not is_power_of_two(grid.scale):
        return None
    return -int(np.log2(float(grid.scale.reshape(()))))


def _beyond(name: str, shift: int, least: int, greatest: int) -> Obstacle | None:
    if least <= shift <= greatest:
        return None
    return Obstacle(
        reason=f"its {name} is {shift}, and the hardware shifts by {least} to {greatest}",
        advice="choose its scales nearer to each other: --target vitisai does",
    )


def _shifts(site: Site) -> Obstacle | None:
    """shift_cut and shift_bias of a layer, and their limits (Vitis AI, vai_q_onnx/refine.py)."""
    x, weight, output = _position(site.inputs[0]), _position(site.inputs[1]), _position(site.output.grid)
    bias = _position(site.bias_grid)
    if x is None or weight is None or output is None:
        return None
    cut = weight + x - output
    found = _beyond("shift_cut", cut, 0, 16)
    if found is not None or bias is None:
        return found
    return _beyond("shift_bias", weight + x - bias, min(0, -(24 - (8 + cut))), 15)


def _shifts_of_add(site: Site) -> Obstacle | None:
    """shift_read and shift_write of an Add, likewise."""
    inputs, output = [_position(grid) for grid in site.inputs], _position(site.output.grid)
    known = [entry for entry in inputs if entry is not None]
    if len(known) < len(inputs) or output is None:
        return None
    read = _beyond("shift_read", max(known) - min(known), 0, 7)
    return read or _beyond("shift_write", min(known) - output, -7, 25)


def _constant_weight(site: Site) -> Obstacle | None:
    weight = site.inputs[1]
    if weight is None or weight.constant:
        return None
    return Obstacle(reason="both of its operands are computed", advice="")


def _one_group_or_depthwise(site: Site) -> Obstacle | None:
    group, channels = site.node.attributes.get_int("group", 1), static_dims(site.node.inputs[0])
    if group == 1 or channels is None or len(channels) < 2 or group == channels[1]:
        return None
    return Obstacle(reason=f"it has {group} groups of several channels", advice="export it with one group")


def _weight_per_tensor(site: Site) -> Obstacle | None:
    weight = site.inputs[1]
    if weight is None or weight.axis is None:
        return None
    return Obstacle(
        reason="its weight has one scale per channel", advice="quantize the weight with one scale for the whole tensor"
    )


def _one_weight_scale(site: Site) -> Obstacle | None:
    """Of QLinearConv and QLinearMatMul: their fifth input is the scale of the weight."""
    scale = constant_value(site.node.inputs[4])
    if scale is None or scale.size == 1:
        return None
    reason = f"its weight has {scale.size} scales, and OpenVINO reads only one here"
    return Obstacle(reason=reason, advice="write the file as Quantize/Dequantize, --target openvino", refused=True)


def _power_of_two(site: Site) -> Obstacle | None:
    for grid in (*site.inputs, site.output.grid, site.bias_grid):
        if grid is not None and grid.scale is not None and not is_power_of_two(grid.scale):
            return Obstacle(
                reason=f"a scale is {float(np.ravel(grid.scale)[0]):g}, no power of two",
                advice="quantize with --scheme power-of-two",
            )
    return None


def _reads_integers(site: Site) -> Obstacle | None:
    """Element-wise kernels read integers only if a kernel before has written such, around 0; else they convert."""
    values, graph = site.node.inputs[: len(site.inputs)], site.node.graph
    read = {value: written_as_integers(value, graph, site.known) for value in values if value}
    if all(written is None for written in read.values()):
        return Obstacle(reason="it computes on constants alone", advice="")
    for value, grid in zip(site.node.inputs, site.inputs, strict=False):
        if value is None or grid is None or read[value] is None:
            continue
        if grid.zero_point is None or np.any(grid.zero_point) or not read[value] or follows_float_concat(value):
            return Obstacle(
                reason=f"{value.name} was quantized from float data right before, or has a zero point other than 0: it "
                "is then computed together with the conversion, in float",
                advice="quantize with zero points of 0, behind a layer that computes on integers",
            )
    return None


def _no_constant_joined(site: Site) -> Obstacle | None:
    if not joins_constant_in_float(site.node):
        return None
    return Obstacle(
        reason="it joins a constant, onto which the QuantizeLinear behind it is not moved",
        advice="",
    )


def _explicit_attributes(site: Site) -> Obstacle | None:
    wanted = ("kernel_shape", "strides", "pads", "dilations", "group")
    missing = [name for name in wanted if name not in site.node.attributes]
    if not missing:
        return None
    return Obstacle(reason=f"it does not say its {', '.join(missing)}", advice="write these attributes out")


CHECKS: Mapping[str, Check] = {
    "beta_1": _beta_1,
    "bias_scale": _bias_scale,
    "bias_scale_unseen": _bias_scale_unseen,
    "constant_weight": _constant_weight,
    "explicit_attributes": _explicit_attributes,
    "float_needs_output": _float_needs_output,
    "no_constant_joined": _no_constant_joined,
    "no_quantized_bias": _no_quantized_bias,
    "no_blocks": _no_blocks,
    "no_blocks_unseen": _no_blocks_unseen,
    "one_group_or_depthwise": _one_group_or_depthwise,
    "one_weight_scale": _one_weight_scale,
    "output_axis": _output_axis,
    "own_float_weight": _own_float_weight,
    "output_axis_unless_float_bias": _output_axis_unless_float_bias,
    "output_axis_unseen": _output_axis_unseen,
    "per_tensor": _per_tensor,
    "per_tensor_input": _per_tensor_input,
    "per_tensor_unseen": _per_tensor_unseen,
    "power_of_two": _power_of_two,
    "reads_integers": _reads_integers,
    "row_bias": _row_bias,
    "shifts": _shifts,
    "shifts_of_add": _shifts_of_add,
    "symmetric": _symmetric,
    "symmetric_if_signed": _symmetric_if_signed,
    "symmetric_weight": _symmetric_weight,
    "weight_per_tensor": _weight_per_tensor,
}
