"""The boundary of a file: the shapes of its inputs and outputs as declared, which the written file gets back.

While a model is worked on its batch is free and its other sizes are numbers; a device that was promised 1 image of
any height is not helped by either. The declared shapes lie in the model's metadata, which every edit keeps.
"""

import json
from dataclasses import replace

import onnx_ir as ir

from onnxdfq.model_file.filling import KEY as FED
from onnxdfq.model_file.filling import fillings
from onnxdfq.model_file.inputs import batch_axes, fed_inputs, inputs
from onnxdfq.model_file.trial import Feeds, run, same
from passes.graph.bodies import subgraphs

KEY = "onnxdfq.declared_shapes"
Dims = list[int | str | None]
OTHER = 32  # by which open sizes grow, to see whether the model still computes the same


def declare_shapes(model: ir.Model) -> None:
    """Writes the shapes of inputs and outputs into the metadata."""
    values = fed_inputs(model)
    declared = {"inputs": list(map(_dims, values)), "outputs": list(map(_dims, model.graph.outputs))}
    model.metadata_props[KEY] = json.dumps(declared)


def declared_shapes(model: ir.Model) -> tuple[list[Dims | None], list[Dims | None]]:
    """Shapes of inputs and outputs, in graph order, as the file had them; None for what told none."""
    found = json.loads(model.metadata_props.get(KEY, "{}"))
    values = fed_inputs(model)
    return (
        found.get("inputs", [None] * len(values)),
        found.get("outputs", [None] * len(model.graph.outputs)),
    )


def with_declared_sizes(model: ir.Model) -> ir.Model | None:
    """A copy whose inputs are as declared; None where they leave nothing open but the batch."""
    copy = model.clone()
    values = fed_inputs(copy)
    axes = batch_axes(values)
    opened = False
    for value, dims in zip(values, declared_shapes(model)[0], strict=True):
        for axis, dim in enumerate(dims or ()):
            if not isinstance(dim, int) and axis != axes[value.name or ""]:
                value.shape = ir.Shape(dims or ())
                opened = True
    return copy if opened else None


def fix_declared_sizes(model: ir.Model) -> None:
    """Puts numbers in the place of open sizes of inputs, batch apart: the model runs at these alone."""
    found = json.loads(model.metadata_props[KEY])
    values = fed_inputs(model)
    axes = batch_axes(values)
    for value, dims in zip(values, found["inputs"], strict=True):
        for axis, now in enumerate(value.shape or () if dims is not None else ()):
            if isinstance(now, int) and axis != axes[value.name or ""]:
                dims[axis] = now
    found["outputs"] = [None] * len(found["outputs"])  # as inferred from the inputs
    model.metadata_props[KEY] = json.dumps(found)


def restore_shapes(model: ir.Model, *, dynamic_batch: bool, static: bool) -> None:
    """Gives inputs the shapes that they were declared with; all other shapes follow from these when it is saved.

    Args:
        model: To be written; edited in place.
        dynamic_batch: Whether the batch stays free, whatever was declared.
        static: Whether sizes that were left open stay numbers, for a runtime that takes nothing else.
    """
    declared, declared_outputs = declared_shapes(model)
    values = fed_inputs(model)
    axes = batch_axes(values)
    for value, dims in zip(values, declared, strict=True):
        if value.shape is None or dims is None:
            continue
        sizes = list(value.shape)
        for axis, (now, dim) in enumerate(zip(value.shape, dims, strict=True)):
            is_batch = axis == axes[value.name or ""]
            if (is_batch and dynamic_batch) or (static and isinstance(now, int)):
                continue
            free = now if isinstance(now, ir.SymbolicDim) else ir.SymbolicDim(f"{value.name}_{axis}")
            sizes[axis] = free if dim is None else dim if isinstance(dim, int) else ir.SymbolicDim(dim)
        value.shape = ir.Shape(sizes)
    del model.metadata_props[KEY]
    for value in model.graph.inputs:
        value.metadata_props.pop(FED, None)  # what the run was told, and no part of the network
    outputs = set(model.graph.outputs)
    for node in model.graph.all_nodes():
        for body in () if static else subgraphs(node):
            for value in (*body.inputs, *body.outputs):  # ONNX Runtime asks for their ranks
                value.shape = None if value.shape is None else ir.Shape([None] * len(value.shape))
        for value in node.outputs:
            if value not in outputs and not value.is_graph_output():
                value.shape = None
    if static:
        return
    for value, dims in zip(model.graph.outputs, declared_outputs, strict=True):
        # what inference finds replaces it; the numbers that it had follow from sizes that may be open again
        value.shape = None if dims is None else ir.Shape([None] * len(dims) if dynamic_batch else dims)


def runs_at_other_sizes(model: ir.Model, opened: ir.Model) -> bool:
    """Whether `model`, whose sizes are numbers, computes what `opened`, the file's own graph, does at other sizes."""
    free, found = model.clone(), fillings(opened)
    sized = {spec.name: spec for spec in inputs(model)}
    feeds: Feeds = {}
    for spec, value in zip(inputs(opened), free.graph.inputs, strict=True):
        now = sized[spec.name]
        is_open = [size is None and axis != now.batch_axis for axis, size in enumerate(spec.shape)]
        shape = [size + OTHER if grows and size else size for size, grows in zip(now.shape, is_open, strict=True)]
        larger = replace(now, shape=tuple(shape))
        feeds[spec.name] = larger.joined(found[spec.name].draw(larger, larger.batch or 1, 0))
        value.shape = ir.Shape([None if grows else size for size, grows in zip(now.shape, is_open, strict=True)])
    for value in (*free.graph.outputs, *(value for node in free.graph.all_nodes() for value in node.outputs)):
        value.shape = None
    expected, computed = run(opened, [feeds]), run(free, [feeds])
    return expected is not None and computed is not None and same(computed, expected)


def _dims(value: ir.Value) -> Dims | None:
    def text(dim: int | ir.SymbolicDim) -> int | str | None:
        return dim if isinstance(dim, int) and dim >= 0 else None if isinstance(dim, int) else dim.value

    is_tensor = value.type is None or isinstance(value.type, ir.TensorType)
    return None if value.shape is None or not is_tensor else list(map(text, value.shape))
