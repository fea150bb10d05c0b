"""Nodes in an order in which each follows what it reads: ONNX asks for it, and ONNX Runtime does without."""

import heapq
from collections import defaultdict

import onnx

from onnxdfq.model_file.untrusted import messages_of


def sort_nodes(proto: onnx.ModelProto) -> None:
    """Puts the nodes of the graph in order, in place, those that are free to move as the file has them.

    Tools that append nodes to a graph leave it out of order (Quark does), and ONNX Runtime loads it; not so inside of
    bodies. A graph whose nodes read in a circle stays as it is, for onnx.checker to refuse.
    """
    graph = proto.graph
    reads = [_names_read(node) for node in graph.node]
    if _is_in_order(graph, reads):
        return
    order = _order(graph, reads)
    if len(order) == len(graph.node):
        nodes = [onnx.NodeProto.FromString(graph.node[place].SerializeToString()) for place in order]
        del graph.node[:]
        graph.node.extend(nodes)


def _names_read(node: onnx.NodeProto) -> set[str]:
    """By the node itself, and by the graphs in it, which see what is around them."""
    if not any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        return set(node.input)
    return {name for inner in messages_of(node, onnx.NodeProto) for name in inner.input}


def _is_in_order(graph: onnx.GraphProto, reads: list[set[str]]) -> bool:
    later = {name for node in graph.node for name in node.output if name}
    for node, names in zip(graph.node, reads, strict=True):
        if not names.isdisjoint(later):
            return False
        later.difference_update(node.output)
    return True


def _order(graph: onnx.GraphProto, reads: list[set[str]]) -> list[int]:
    """Places of the nodes; fewer than there are where some read in a circle."""
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    waits, readers = [0] * len(reads), defaultdict[int, list[int]](list)
    for place, names in enumerate(reads):
        for maker in {makers[name] for name in names if name in makers}:
            waits[place] += 1
            readers[maker].append(place)
    ready = [place for place, count in enumerate(waits) if not count]
    order: list[int] = []
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers[order[-1]]:
            waits[reader] -= 1
            if not waits[reader]:
                heapq.heappush(ready, reader)
    return order
