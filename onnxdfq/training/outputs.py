"""Which values of a network its student is to reproduce, and which of them score classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from passes.graph.compared import answer_output, compared_values
from passes.graph.editing import name_of

_PROBABILITIES = {"Softmax", "LogSoftmax"}


@dataclass(frozen=True, kw_only=True)
class Output:
    """A value of the float graph. classes: whether it is (N, K, 1, ...), scores of K classes before their softmax."""

    name: str
    classes: bool


def distilled_outputs(graph: ir.Graph) -> Sequence[Output]:
    """The float outputs, and the float values in front of other outputs; where one is a softmax, what that reads."""
    place = answer_output(graph)
    answers = [] if place is None else [graph.outputs[place], *_argmax_reads(graph.outputs[place])]
    found = []
    for value in compared_values(graph):
        node = value.producer()
        source = None if node is None else node.inputs[0]
        if node is not None and source is not None and node.op_type in _PROBABILITIES and _along_classes(node, value):
            found.append(Output(name=name_of(source), classes=True))
        else:
            found.append(Output(name=name_of(value), classes=value in answers))
    return tuple(dict.fromkeys(found))


def class_scores(outputs: Sequence[Output]) -> int | None:
    """The place of the first output that scores classes; None where none does."""
    return next((place for place, output in enumerate(outputs) if output.classes), None)


def _along_classes(node: ir.Node, value: ir.Value) -> bool:
    """Whether a Softmax of (N, K) or (N, K, 1, ...) goes along K."""
    axis = node.attributes.get_int("axis", -1)
    rank = _rank(value)
    return rank >= 2 and axis % rank == 1 and all(size == 1 for size in (value.shape or ())[2:])


def _argmax_reads(value: ir.Value) -> list[ir.Value]:
    """What the ArgMax that computes a value reads, where that is (N, K)."""
    node = value.producer()
    source = node.inputs[0] if node is not None and node.op_type == "ArgMax" else None
    return [] if source is None or _rank(source) != 2 else [source]


def _rank(value: ir.Value) -> int:
    return 0 if value.shape is None else len(value.shape)
