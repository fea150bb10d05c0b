"""If with a constant condition: the branch that is taken stands in its place."""

import logging

import onnx_ir as ir

from passes.graph.bodies import taken_branch
from passes.graph.editing import FreshNames

logger = logging.getLogger(__name__)


def inline_branches(graph: ir.Graph) -> int:
    """Replaces each If whose condition is a constant by the nodes of its branch. How many, branches of branches too.

    Values and nodes of a branch whose name the graph has already get another.
    """
    count = 0
    while True:
        node = next((node for node in graph if taken_branch(node)), None)
        if node is None:
            return count
        _inline(graph, node)
        count += 1


def _inline(graph: ir.Graph, node: ir.Node) -> None:
    branch = node.attributes[taken_branch(node) or ""].as_graph()
    names, known = FreshNames(graph), {value.name for value in graph.inputs} | graph.initializers.keys()
    known |= {value.name for other in graph.all_nodes() if other.graph is not branch for value in other.outputs}
    taken = {other.name for other in graph if other.name}
    for value in list(branch.initializers.values()):
        del branch.initializers[value.name or ""]
        if value.name in known:
            value.name = names(f"{node.name or 'If'}.{value.name}")
        graph.register_initializer(value)
    results = list(branch.outputs)
    inner = list(branch)
    for one in inner:
        branch.remove(one)
        if one.name in taken:
            one.name = names(f"{node.name or 'If'}.{one.name}")
        for value in one.outputs:
            if value.name and value.name in known:
                value.name = names(f"{node.name or 'If'}.{value.name}")
        graph.insert_before(node, one)
    for old, new in zip(node.outputs, results, strict=True):
        if new.producer() not in inner or old.is_graph_output():
            # what the branch hands through from outside keeps its name, and so does an output of the graph
            moved = ir.node("Identity", [new], name=names(f"{node.name or 'If'}.result"))
            graph.insert_before(node, moved)
            new = moved.outputs[0]
        name = old.name
        new.type, new.shape = new.type or old.type, new.shape or old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name, new.name = None, name if new.name is None or old.is_graph_output() else new.name
        if new.is_graph_output():
            new.name = name
    logger.debug("If %s becomes the %d nodes of its branch", node.name, len(inner))
    graph.remove(node, safe=True)
