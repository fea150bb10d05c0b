"""Products of matrices."""

import onnx_ir as ir

from passes.training.tape import Gradients, Outputs, Table, Tape


def _matmul(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """dA = g Bᵀ and dB = Aᵀ g, summed over the axes along which one of them was repeated."""
    g, (a, b) = given[0], node.inputs
    ranks = [len(tape.sizes(node, value)) for value in (a, b)]
    if min(ranks) < 2:
        raise tape.refuse(node, "one of its operands is a vector; write it as a matrix")
    assert g is not None and a is not None and b is not None

    def of_first() -> ir.Value:
        return tape.sum_to(tape.op("MatMul", g, _turned(tape, b, ranks[1])), node, a)

    def of_second() -> ir.Value:
        if ranks[1] > 2:
            return tape.sum_to(tape.op("MatMul", _turned(tape, a, ranks[0]), g), node, b)
        inside, outside = tape.known(node, b)  # one weight for all rows: they are one matrix
        rows = tape.op("Reshape", a, tape.integers(-1, inside))
        return tape.op("Gemm", rows, tape.op("Reshape", g, tape.integers(-1, outside)), transA=1)

    return (of_first, of_second)


def _turned(tape: Tape, value: ir.Value, rank: int) -> ir.Value:
    return tape.op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def _gemm(tape: Tape, node: ir.Node, given: Outputs) -> Gradients:
    """Of Y = α A' B' + β C, where ' may transpose: each factor's gradient is one Gemm."""
    g, (a, b, *rest) = given[0], node.inputs
    a_turned, b_turned = (node.attributes.get_int(key, 0) for key in ("transA", "transB"))
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    assert g is not None

    def of_first() -> ir.Value:
        if a_turned:
            return tape.op("Gemm", b, g, alpha=alpha, transA=b_turned, transB=1)
        return tape.op("Gemm", g, b, alpha=alpha, transB=1 - b_turned)

    def of_second() -> ir.Value:
        if b_turned:
            return tape.op("Gemm", g, a, alpha=alpha, transA=1, transB=a_turned)
        return tape.op("Gemm", a, g, alpha=alpha, transA=1 - a_turned)

    def of_third() -> ir.Value:
        return tape.sum_to(g if beta == 1.0 else tape.op("Mul", g, tape.constant(beta)), node, rest[0])

    return (of_first, of_second, of_third)


RULES: Table = {"Gemm": _gemm, "MatMul": _matmul}
