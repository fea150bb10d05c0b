"""`SetOpset`: the same graph, written for another opset between 17 and 25."""

import logging

import numpy as np
import onnx
import onnx_ir as ir

from passes.graph.editing import (
    FreshNames,
    add_initializer,
    constant_value,
    drop_unused_initializers,
    is_constant,
    is_op,
    replace_with,
)

logger = logging.getLogger(__name__)

OLDEST, NEWEST = 17, 25
GELU_OPSET = 20

# The IR version that came with each opset: runtimes refuse files whose IR is newer than they know.
IR_VERSION = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13}


class SetOpset(ir.passes.InPlacePass):
    """Writes a model of one of these opsets for another.

    A node that is valid under two of them means the same in both, so most nodes stay as they are:

    1. Where an older opset takes the axes of a reduction as an attribute, they become one.
    2. Split loses num_outputs where an older opset lacks it and its parts are equal, as is the default there.
    3. Attributes that the older opset lacks go where they have their default.
    4. Gelu (opset 20) becomes x/2 * (1 + erf(x / sqrt 2)), or what approximates that by tanh: `Canonicalize` may have
       made it of these.

    Raises:
        PreconditionError: the opset has no form for a node; the message names it.
    """

    def __init__(self, opset: int) -> None:
        if not OLDEST <= opset <= NEWEST:
            raise ValueError(f"opset {opset} is asked for, and {OLDEST} to {NEWEST} can be written")
        self.opset = opset

    def requires(self, model: ir.Model) -> None:
        """The opset has to have a form for every node."""
        for node in model.graph.all_nodes() if model.opset_imports.get("", 0) != self.opset else ():
            if node.domain in ("", "ai.onnx") and (obstacle := self._obstacle(node)) is not None:
                raise ir.passes.PreconditionError(
                    f"The node {node.name} cannot be written for opset {self.opset}, where {node.op_type} {obstacle}."
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        if model.opset_imports.get("", 0) == self.opset:
            return ir.passes.PassResult(model, modified=False)
        for node in list(model.graph.all_nodes()):
            if _is_gelu(node) and self.opset < GELU_OPSET:
                _spell_out_gelu(node)
            elif node.domain in ("", "ai.onnx"):
                schema = onnx.defs.get_schema(node.op_type, self.opset, "")
                for name in set(node.attributes) - set(schema.attributes):
                    node.attributes.pop(name)
                    logger.debug("%s %s loses its attribute %s", node.op_type, node.name, name)
                if _takes_axes_as_attribute(node, schema) and len(node.inputs) > 1:
                    axes = constant_value(node.inputs[1])
                    if axes is not None:
                        node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in axes.reshape(-1)])
                    node.resize_inputs(1)
                    logger.debug("%s %s has its axes as an attribute", node.op_type, node.name)
        drop_unused_initializers(model.graph)
        logger.debug("opset %d becomes %d", model.opset_imports.get("", 0), self.opset)
        model.opset_imports[""] = self.opset
        model.ir_version = IR_VERSION[self.opset]
        return ir.passes.PassResult(model, modified=True)

    def _obstacle(self, node: ir.Node) -> str | None:
        """Why the opset has no form for `node`; None when it has."""
        if _is_gelu(node):
            return None
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, "")
        except onnx.defs.SchemaError:
            return "does not exist"
        newest = onnx.defs.get_schema(node.op_type, NEWEST, "")
        for name, attribute in node.attributes.items():
            known = newest.attributes.get(name)
            if name not in schema.attributes and not (known and _is_default(node, attribute, known)):
                return f"has no attribute {name}"
        if _takes_axes_as_attribute(node, schema):
            given = node.inputs[1] if len(node.inputs) > 1 else None
            return "takes its axes as an attribute" if given is not None and not is_constant(given) else None
        return f"takes no more than {schema.max_input} inputs" if len(node.inputs) > schema.max_input else None


def _is_gelu(node: ir.Node) -> bool:
    return is_op(node, "Gelu") and node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.FLOAT


def _spell_out_gelu(node: ir.Node) -> None:
    graph, x = node.graph, node.inputs[0]
    assert isinstance(graph, ir.Graph) and x is not None
    names = FreshNames(graph)

    def constant(what: str, number: float) -> ir.Value:
        return add_initializer(graph, names(f"{node.name}_{what}"), np.asarray(number, np.float32))

    def add(op_type: str, what: str, *inputs: ir.Value) -> ir.Value:
        new = ir.node(op_type, inputs, name=names(f"{node.name}_{what}"))
        new.outputs[0].name, new.outputs[0].type, new.outputs[0].shape = new.name, x.type, x.shape
        graph.insert_before(node, new)
        return new.outputs[0]

    if node.attributes.get_string("approximate", "none") == "tanh":
        cubed = add("Mul", "cubed", add("Mul", "squared", x, x), x)
        bent = add("Add", "bent", x, add("Mul", "share", cubed, constant("cubic", 0.044715)))
        curve = add("Tanh", "tanh", add("Mul", "scaled", bent, constant("root", np.sqrt(2 / np.pi))))
    else:
        curve = add("Erf", "erf", add("Div", "divided", x, constant("root", np.sqrt(2))))
    raised = add("Add", "raised", curve, constant("one", 1))
    halved = add("Mul", "halved", x, constant("half", 0.5))
    replace_with(node, ir.node("Mul", [halved, raised], name=node.name))
    logger.debug("Gelu %s becomes products, sums and one curve", node.name)


def _takes_axes_as_attribute(node: ir.Node, schema: onnx.defs.OpSchema) -> bool:
    return node.op_type.startswith("Reduce") and "axes" in schema.attributes


def _is_default(node: ir.Node, attribute: ir.Attr, schema: onnx.defs.OpSchema.Attribute) -> bool:
    """Whether the attribute has the value that its absence means, in an opset that lacks it too."""
    if attribute.name == "num_outputs":  # without it a Split makes equal parts
        source, axis = node.inputs[0], node.attributes.get_int("axis", 0)
        size = None if source is None or source.shape is None else source.shape[axis]
        return isinstance(size, int) and size % attribute.as_int() == 0
    if attribute.name == "dilations":
        return all(size == 1 for size in attribute.as_ints())
    if not schema.default_value.name:
        return False
    default = onnx.helper.get_attribute_value(schema.default_value)
    return bool(attribute.value == (default.decode() if isinstance(default, bytes) else default))
