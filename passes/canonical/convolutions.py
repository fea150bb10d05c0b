"""Convolutions with all their attributes written out, padding included."""

import logging
from collections.abc import Sequence

import onnx_ir as ir

from passes.graph.editing import constant_value, discard, is_op, rank, scalar_value, static_dims
from passes.graph.padding import same_pads

logger = logging.getLogger(__name__)


def make_convolutions_explicit(graph: ir.Graph) -> int:
    """Writes out the attributes of Conv and ConvTranspose whose weight has a static shape. How many nodes changed."""
    return sum(_make_explicit(node) for node in graph if is_op(node, "Conv", "ConvTranspose"))


def _make_explicit(node: ir.Node) -> bool:
    weight = node.inputs[1]
    kernel = static_dims(weight, 2)
    if kernel is None or not kernel:
        return False
    axes = len(kernel)
    missing: dict[str, ir.Attr] = {}
    for name, default in (("kernel_shape", kernel), ("strides", (1,) * axes), ("dilations", (1,) * axes)):
        if name not in node.attributes:
            missing[name] = ir.AttrInt64s(name, default)
    if "group" not in node.attributes:
        missing["group"] = ir.AttrInt64("group", 1)
    pads = None if "output_shape" in node.attributes else _pads(node, kernel)
    if pads is not None and (pads != tuple(node.attributes.get_ints("pads", ())) or "auto_pad" in node.attributes):
        missing["pads"] = ir.AttrInt64s("pads", pads)
        node.attributes.pop("auto_pad", None)
    for attribute in missing.values():
        node.attributes.add(attribute)
    if missing:
        logger.debug("%s %s says its %s", node.op_type, node.name, ", ".join(missing))
    return bool(missing)


def _pads(node: ir.Node, kernel: Sequence[int]) -> tuple[int, ...] | None:
    """Begins, then ends, one of each per spatial axis; None where auto_pad needs a size that is not static."""
    axes = len(kernel)
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    if auto_pad == "NOTSET":
        return tuple(node.attributes.get_ints("pads", (0,) * 2 * axes))
    if auto_pad == "VALID":
        return (0,) * 2 * axes
    if not is_op(node, "Conv"):
        return None
    strides = node.attributes.get_ints("strides", (1,) * axes)
    dilations = node.attributes.get_ints("dilations", (1,) * axes)
    sizes: Sequence[int] | None = static_dims(node.inputs[0], 2)
    if sizes is None:
        if any(stride != 1 for stride in strides):
            return None
        sizes = (0,) * axes  # with stride 1 the padding does not depend on the size
    outputs = [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
    return same_pads(zip(sizes, outputs, kernel, strides, dilations, strict=True), upper=auto_pad == "SAME_UPPER")


def merge_pads(graph: ir.Graph) -> int:
    """Pad of the spatial axes by zero goes into the Convs and AveragePools that read it, if nothing else does."""
    count = 0
    for node in graph:
        pads = _zero_pads(node) if is_op(node, "Pad") else None
        value = node.outputs[0]
        readers = [use.node for use in value.uses()]
        if pads is None or value.is_graph_output() or not readers:
            continue
        if not all(reader.graph is graph and _can_take(reader, value, pads) for reader in readers):
            continue
        for reader in readers:
            _take(reader, pads)
        data = node.inputs[0]
        assert data is not None
        value.replace_all_uses_with(data)
        discard(node)
        logger.debug("Pad %s goes into %s", node.name, ", ".join(reader.name or reader.op_type for reader in readers))
        count += 1
    return count


def _zero_pads(node: ir.Node) -> tuple[int, ...] | None:
    """(begins, ends) of the spatial axes if `node` pads those alone, and with zeros; else None."""
    amounts = constant_value(node.inputs[1])
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    listed = node.inputs[3] if len(node.inputs) > 3 else None
    axes, given = rank(node.inputs[0]), constant_value(listed)
    if node.attributes.get_string("mode", "constant") != "constant" or amounts is None or (amounts < 0).any():
        return None
    if (fill is not None and scalar_value(fill) != 0) or (listed is not None and (given is None or axes is None)):
        return None
    axes = axes if axes is not None else amounts.size // 2
    full = [0] * (2 * axes)
    chosen = [int(axis) % axes for axis in given] if given is not None else list(range(axes))
    for position, axis in enumerate(chosen):
        full[axis], full[axes + axis] = int(amounts[position]), int(amounts[len(chosen) + position])
    if axes < 3 or any(full[:2]) or any(full[axes : axes + 2]):
        return None
    return (*full[2:axes], *full[axes + 2 :])


def _can_take(reader: ir.Node, value: ir.Value, pads: Sequence[int]) -> bool:
    if reader.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or value in reader.inputs[1:]:
        return False
    if is_op(reader, "Conv"):
        return True
    if not is_op(reader, "AveragePool") or reader.attributes.get_int("ceil_mode", 0) != 0:
        return False
    own = reader.attributes.get_ints("pads", ())
    total = [a + b for a, b in zip(own or (0,) * len(pads), pads, strict=True)]
    # The padded zeros counted in every mean, and runtimes want each padding smaller than its window.
    counted = reader.attributes.get_int("count_include_pad", 0) == 1 or not any(own)
    window = reader.attributes.get_ints("kernel_shape", ())
    return counted and all(pad < size for pad, size in zip(total, (*window, *window), strict=True))


def _take(reader: ir.Node, pads: Sequence[int]) -> None:
    own = reader.attributes.get_ints("pads", ()) or (0,) * len(pads)
    reader.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(own, pads, strict=True)])
    if is_op(reader, "AveragePool"):
        reader.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
