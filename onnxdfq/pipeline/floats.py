"""What stays float in a written file, told by node and reason; and what lets no gradient through."""

from collections.abc import Sequence

import onnx_ir as ir

from onnxdfq.engine.operation import is_native
from onnxdfq.methods.method import Measurement, Note, Run
from onnxdfq.pipeline.request import Output
from onnxdfq.recipe.bits import FLOAT_BITS
from passes.lint.lint import Finding

NAMED = 4  # operators that a note names


def tell_of_floats(output: Output, findings: Sequence[Finding], run: Run) -> None:
    """Counts the nodes of a file that compute on integers and in float, and says of these which and why."""
    floats = [finding for finding in findings if finding.verdict == "float"]
    integers = [finding for finding in findings if finding.verdict == "integer"]
    values = {"nodes_integer": len(integers), "nodes_float": len(floats)}
    run.tell(Measurement(values=values, target=output.target.name))
    if not floats or run.bits.activation >= FLOAT_BITS:
        return
    first: dict[str, Finding] = {}
    for finding in floats:
        first.setdefault(finding.op_type, finding)
    counts = {op_type: sum(finding.op_type == op_type for finding in floats) for op_type in first}
    named = [
        f"{_counted(counts[op_type], op_type)} {finding.node}: {finding.reason}"
        for op_type, finding in list(first.items())[:NAMED]
    ]
    more = ", ..." if len(first) > NAMED else ""
    run.tell(
        Note(
            text=f"{len(floats)} of {len(floats) + len(integers)} computing nodes stay float for the target "
            f"{output.target.name} ({'; '.join(named)}{more}); `onnxdfq lint {output.path}` lists all."
        )
    )


def without_gradient(graph: ir.Graph) -> list[str]:
    """Operator and name of each node that ONNX Runtime computes inside the engine, which no gradient passes."""
    return [f"{node.op_type} {node.name}" for node in graph if not is_native(node)]


def _counted(count: int, op_type: str) -> str:
    return op_type if count == 1 else f"{count} {op_type}, as"
