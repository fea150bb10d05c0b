"""Inner sizes that hold the batch as a number, or compute it although the other sizes are constant."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from onnxdfq.model_file.through_proto import without_weights
from passes.graph.editing import name_of

_Shapes = dict[str, list[int]]

# A factor that no network's sizes have by chance: a size that grows by it along with the batch is the batch.
_FACTOR = 97


def with_free_sizes(model: ir.Model, batch: int) -> ir.Model:
    """A copy in which no size that a Reshape or Resize reads holds the batch.

    1. Resize to constant sizes: by factors, where these are exact in float32, else to sizes of which the first ones are
       those of the data. Not to sizes of named axes: beside integer convolutions ONNX Runtime fails to load these.
    2. Reshape to a constant target: in graph order, the entry into which the batch goes becomes -1 and the others
       numbers. Row-major order says which entry that is: the one before which the target has as many values as the
       data has before its batch axis, so (B, 48, 1936) to (48, 2, 1936) at B = 2 becomes (-1, 2, 1936).
    3. Reshape to a target computed by Shape, Gather, Concat: a constant target, -1 where the batch goes.

    Args:
        model: Read only.
        batch: The size at which the model was traced, or 1.
    """
    copy = model.clone()
    shapes = _shapes(copy, batch)
    for node in copy.graph:
        _free_resize(copy, node, shapes)
    seen: set[ir.Node] = set()
    while True:
        # Again after each edit: behind a target that does not fit the batch, inference finds no shapes.
        grown = _shapes(copy, batch * _FACTOR)
        baked = next((node for node in copy.graph if node not in seen and _is_baked(node, shapes, grown)), None)
        if baked is None:
            break
        seen.add(baked)
        data, target = name_of(baked.inputs[0]), shapes[name_of(baked.outputs[0])]
        _replace_target(copy, baked, target, _batch_entry(shapes[data], grown[data], target, batch))
    for node in copy.graph:
        output = name_of(node.outputs[0])
        if node.op_type == "Reshape" and _constant(node, 1) is None and output in shapes and output in grown:
            differing = [axis for axis, size in enumerate(shapes[output]) if size != grown[output][axis]]
            if len(differing) < 2:
                _replace_target(copy, node, shapes[output], *differing)
    common.RemoveUnusedNodesPass()(copy)
    return copy


def _is_baked(node: ir.Node, shapes: _Shapes, grown: _Shapes) -> bool:
    if node.op_type != "Reshape" or _constant(node, 1) is None:
        return False
    data, output = name_of(node.inputs[0]), name_of(node.outputs[0])
    if not (data in shapes and data in grown and output in shapes) or shapes[data] == grown[data]:
        return False
    axis = _batch_entry(shapes[data], grown[data], shapes[output], 1)
    now = grown.get(output)
    return axis is not None and (now is None or now[axis] != shapes[output][axis] * _FACTOR)


def _batch_entry(data: Sequence[int], grown: Sequence[int], target: Sequence[int], batch: int) -> int | None:
    """The entry of `target` into which the batch axis of the data goes, None if there is none."""
    axis = next(axis for axis, (before, after) in enumerate(zip(data, grown, strict=True)) if before != after)
    outer = math.prod(data[:axis])
    fitting = [at for at in range(len(target)) if math.prod(target[:at]) == outer and target[at] % batch == 0]
    return fitting[0] if fitting else None


def _free_resize(model: ir.Model, node: ir.Node, shapes: _Shapes) -> None:
    if node.op_type != "Resize" or _constant(node, 3) is None:
        return
    data, target = shapes.get(name_of(node.inputs[0])), shapes.get(name_of(node.outputs[0]))
    if "axes" in node.attributes or data is None or target is None:
        return
    axes = [axis for axis, (before, after) in enumerate(zip(data, target, strict=True)) if before != after]
    if not axes or axes[0] == 0:
        return
    factors = (np.array(target) / np.array(data)).astype(np.float32)
    if (factors.astype(np.float64) * data == target).all():
        _replace_constant(model, node, 2, factors, "factors")
        node.resize_inputs(3)
        node.attributes.pop("keep_aspect_ratio_policy", None)  # of sizes alone
        return
    _replace_constant(model, node, 3, np.array(target[axes[0] :]), "target_sizes")
    kept = ir.node("Shape", [node.inputs[0]], {"start": 0, "end": axes[0]})
    sizes = ir.node("Concat", [kept.outputs[0], node.inputs[3]], {"axis": 0})
    for one in (kept, sizes):
        one.name = one.outputs[0].name = f"{node.outputs[0].name}/{one.op_type}"
    model.graph.insert_before(node, [kept, sizes])
    node.replace_input_with(3, sizes.outputs[0])


def _shapes(model: ir.Model, batch: int) -> _Shapes:
    """Shapes of the values for which inference finds every size, with each free size of an input set to `batch`."""
    proto, _ = without_weights(model)  # and read from the protobuf again: this runs once for each target that changes
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = dim.dim_value if dim.HasField("dim_value") else batch
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }


def _constant(node: ir.Node, index: int) -> NDArray[np.generic] | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy() if tensor is not None and tensor.size else None


def _replace_target(model: ir.Model, node: ir.Node, target: Sequence[int], axis: int | None = None) -> None:
    sizes = [-1 if at == axis else size for at, size in enumerate(target)]
    _replace_constant(model, node, 1, np.array(sizes, np.int64), "target_shape")


def _replace_constant(model: ir.Model, node: ir.Node, index: int, array: NDArray[Any], what: str) -> None:
    """Gives the node an initializer of its own: others may read the old one."""
    name = f"{node.outputs[0].name}/{what}"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    node.replace_input_with(index, value)
