"""Convolutions that skip pixels, and a place in front of each where what they read can be moved."""

import onnx_ir as ir

from passes.graph.editing import FreshNames, is_op, rank


class MarkStrided(ir.passes.InPlacePass):
    """Puts an Identity in front of each two-dimensional Conv with a stride; `marks` names what these give."""

    def __init__(self) -> None:
        self.marks: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        names = FreshNames(model.graph)
        for node in list(model.graph):
            source = node.inputs[0] if node.inputs else None
            strides = node.attributes.get_ints("strides", [])
            if not is_op(node, "Conv") or source is None or rank(source) != 4 or max(strides, default=1) == 1:
                continue
            mark = names(f"{node.name}.mark")
            identity = ir.node("Identity", [source], name=mark, outputs=[ir.Value(name=mark, type=source.type)])
            model.graph.insert_before(node, identity)
            node.replace_input_with(0, identity.outputs[0])
            self.marks.append(mark)
        return ir.passes.PassResult(model, modified=bool(self.marks))
