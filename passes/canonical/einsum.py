"""Einsum that is a product of matrices, as MatMul, for which integer kernels exist."""

import string
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from passes.canonical.chain import Chain
from passes.graph.editing import constant_value, rank


def matrix_product(node: ir.Node, chain: Chain) -> Chain | None:
    """Einsum of two operands, as MatMul with Transposes where the axes lie otherwise.

    None where it is something else: a sum or diagonal of one operand, an outer or element-wise product, one over
    several axes, or one of which an operand has several axes of its own beside axes that both share with the output.
    """
    terms = _terms(node)
    if terms is None:
        return None
    first, second, output = terms
    shared = [axis for axis in output if axis in first and axis in second]
    summed = [axis for axis in first if axis in second and axis not in output]
    rows, columns = ([axis for axis in output if axis in one and axis not in shared] for one in (first, second))
    known = {*shared, *summed, *rows, *columns}
    if len(summed) != 1 or {*first, *second, *output} != known or not rows or not columns:
        return None
    left, right = node.inputs
    if len(columns) > 1:  # MatMul takes further axes of its own on the left only
        (first, rows, left), (second, columns, right) = (second, columns, right), (first, rows, left)
    if len(columns) > 1 or (shared and len(rows) > 1):
        return None
    left = _turned(chain, left, first, [*shared, *rows, *summed])
    right = _turned(chain, right, second, [*shared, *summed, *columns])
    found = chain.add("MatMul", [left, right])
    _turned(chain, found, [*shared, *rows, *columns], output)
    return chain


def _terms(node: ir.Node) -> tuple[list[str], list[str], list[str]] | None:
    """Axes of both operands and of the output, a letter each; those of an ellipsis get letters of their own."""
    inputs, arrow, output = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    given = inputs.split(",")
    if len(given) != 2 or len(node.inputs) != 2:
        return None
    free = [letter for letter in string.ascii_letters if letter not in inputs]
    sizes = [rank(value) for value in node.inputs]
    hidden = [_hidden(term, axes) for term, axes in zip(given, sizes, strict=True)]
    if None in hidden or len({count for count in hidden if count}) > 1:
        return None  # ranks that nobody knows, or that are broadcast against one another
    letters = "".join(free[: max(count or 0 for count in hidden)])
    first, second = (list(term.replace("...", letters)) for term in given)
    every = [*first, *second]
    if not arrow:  # then what occurs once, in order
        output = "..." * bool(letters) + "".join(sorted(axis for axis in {*every} if every.count(axis) == 1))
    found = list(output.replace("...", letters))
    if any(len({*term}) < len(term) for term in (first, second, found)):
        return None
    return first, second, found


def _hidden(term: str, axes: int | None) -> int | None:
    """How many axes an ellipsis stands for; None where that does not fit."""
    if axes is None:
        return None
    count = axes - len(term.replace("...", ""))
    return count if count == 0 or (count > 0 and "..." in term) else None


def _turned(chain: Chain, value: ir.Value | None, have: Sequence[str], want: Sequence[str]) -> ir.Value | None:
    order = [have.index(axis) for axis in want]
    if order == sorted(order):
        return value
    array = constant_value(value)
    if array is not None:
        return chain.constant(np.ascontiguousarray(array.transpose(order)))
    return chain.add("Transpose", [value], {"perm": ir.AttrInt64s("perm", order)})
