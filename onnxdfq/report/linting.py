"""What a target's runtime will compute on integers, in float or not at all, node by node, before deployment."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxdfq.errors import InputError
from onnxdfq.model_file import blaming, read_model
from onnxdfq.recipe.names import one_of
from onnxdfq.report.quantization import quantization
from onnxdfq.targets import load_target, target_of
from passes.graph.bodies import subgraphs
from passes.graph.operators import JUDGED
from passes.lint.lint import Finding
from passes.lint.lint import lint as run
from passes.lint.quantized_graph import WHOLE_FILE
from passes.target.operator_rule import Verdict
from passes.target.target import Target
from passes.write.provenance import read_provenance

VERDICTS: tuple[Verdict, ...] = ("integer", "float", "refused")


@dataclass(frozen=True, kw_only=True)
class Lint:
    """The findings about one file. quantized: whether anything in it is, its weights alone included.

    bodies: whether it holds an If, Loop or Scan, whose bodies are judged too.
    """

    file: str
    target: Target
    quantized: bool
    bodies: bool
    findings: tuple[Finding, ...]

    @property
    def count(self) -> Mapping[Verdict, int]:
        """Number of nodes by verdict, without findings about the file as a whole."""
        found = Counter(finding.verdict for finding in self.findings if finding.node)
        return {verdict: found[verdict] for verdict in VERDICTS}

    @property
    def basis(self) -> str:
        """A sentence on what the rules rest on: the runtime itself, or documents where the target was never run."""
        rule = self.target.operators.get(WHOLE_FILE)
        if rule is not None and rule.reason:
            return rule.reason
        sources = f"Their sources: {'; '.join(self.target.sources)}."
        tried = not self.bodies or (rule is not None and rule.bodies)
        if not self.target.verified:
            unknown = "" if tried else " Of bodies of If, Loop and Scan nothing is known; they are judged by the same."
            return f"{self.target.title} was not run: these rules come from documents.{unknown} {sources}"
        but = "" if tried else ", but not in bodies of If, Loop and Scan, which are judged by the same rules"
        return f"The rules were compared with the runtime itself, node by node{but}. {sources}"


def lint(path: Path | str, *, target: str | None = None) -> Lint:
    """Judges the model at `path`, float or quantized.

    Args:
        path: Of the file; it is only read.
        target: A name, or the path of a target file; by default the one that the file was written for, else "ort".

    Raises:
        ModelFileError: The file cannot be read or is damaged.
        InputError: There is no such target.
    """
    asked = None if target is None else load_target(target)
    model = read_model(path, inferred=True)
    found = asked or target_of(read_provenance(model).get("target", ""))
    with blaming(Path(path)):
        return Lint(
            file=str(path),
            target=found,
            quantized=bool(quantization(model)),
            bodies=any(subgraphs(node) for node in model.graph),
            findings=run(model, found),
        )


def shortfalls(findings: Sequence[Finding], requirement: str) -> tuple[Finding, ...]:
    """The findings that do not meet a requirement; those of a refused node or file never do.

    Args:
        findings: About one file.
        requirement: "integer": every node computes on integers; "integer:Conv,Gemm": those operators do; "exact": no
            integer kernel saturates, on any processor.

    Raises:
        InputError: There is no such requirement, or lint never judges the operator.
    """
    verdict, _, listed = requirement.partition(":")
    one_of("requirement", verdict, ["integer", "exact"])
    if verdict == "exact":
        if requirement != "exact":
            raise InputError(f"--require {requirement}: exact is asked of the whole file; write --require exact.")
        return tuple(finding for finding in findings if finding.verdict == "refused" or not finding.exact)
    operators = [name.strip() for name in listed.split(",") if name.strip()]
    if (listed != "" and not operators) or requirement.endswith(":"):
        raise InputError(f"--require {requirement} names no operator; write integer, or integer:Conv,Gemm.")
    present = {finding.op_type for finding in findings if finding.op_type}
    for name in operators:
        one_of("operator in --require", name, sorted(JUDGED | present))
    return tuple(
        finding
        for finding in findings
        if finding.verdict == "refused"
        or (finding.verdict == "float" and (not operators or finding.op_type in operators))
    )
