"""`FixBatch`: a batch of one, for runtimes that take only static shapes."""

import logging

import onnx_ir as ir

logger = logging.getLogger(__name__)


class FixBatch(ir.passes.InPlacePass):
    """Sets the symbolic sizes of the graph inputs to 1, wherever they occur.

    Symbolic sizes that occur inside alone stay; `save_model` infers them anew.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        graph = model.graph
        free = {size for value in graph.inputs for size in value.shape or () if not isinstance(size, int)}
        names = {size.value for size in free}
        if not free:
            return ir.passes.PassResult(model, modified=False)
        for value in (*graph.inputs, *graph.outputs, *(value for node in graph.all_nodes() for value in node.outputs)):
            if value.shape is not None:
                value.shape = ir.Shape(
                    [1 if not isinstance(size, int) and size.value in names else size for size in value.shape]
                )
        logger.debug("the free sizes %s become 1", ", ".join(sorted(map(str, names))))
        return ir.passes.PassResult(model, modified=True)
