"""From a quantized model, a float one and samples to a `Diagnosis`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxdfq.calibration.memory import BATCH_BYTES, images_within
from onnxdfq.errors import InputError
from onnxdfq.images.samples import Samples
from onnxdfq.model_file import batch_of
from onnxdfq.progress import ProgressFactory, silent
from onnxdfq.report.diagnosis.cases import Inquiry
from onnxdfq.report.diagnosis.causes import not_finite
from onnxdfq.report.diagnosis.closeness import Closeness, Comparison
from onnxdfq.report.diagnosis.evidence import decibel
from onnxdfq.report.diagnosis.layers import Layer, layers_of
from onnxdfq.report.diagnosis.matching import matched
from onnxdfq.report.diagnosis.measuring import SWITCHED, Measured, inputs_of_concats, is_long, measure
from onnxdfq.report.diagnosis.reading import Quantized
from onnxdfq.report.diagnosis.result import Diagnosis
from onnxdfq.report.diagnosis.runs import BATCH_SIZE, Runs, run_both
from onnxdfq.report.diagnosis.switches import Network
from onnxdfq.report.diagnosis.tables import layer_reports
from onnxdfq.targets import load_target, target_of
from passes.graph.editing import name_of, node_titles
from passes.lint.lint import Finding as Kernel
from passes.lint.lint import lint
from passes.write.provenance import read_provenance

SAME = 20.0  # dB between the float model and the file without its quantizers; less, and something else differs, too
FEW = 8  # samples that a long network runs on
MOST_BYTES = 64 * BATCH_BYTES  # of all values of its batch, which gradients keep


@dataclass(frozen=True, kw_only=True, eq=False)
class _Compared:
    """A network to measure, and its runs. near: to the float model as it was given; None without one."""

    network: Network
    layers: tuple[Layer, ...]
    runs: Runs
    near: Closeness | None = None

    @property
    def order(self) -> float:
        """The greater, the closer to the float model without quantizers."""
        return 0.0 if self.near is None else self.near.order


@dataclass(frozen=True, kw_only=True, eq=False)
class _Laboratory:
    """Where networks of one file run, on the same samples, with the float model beside them. titles: output name → what
    people call its node; stored: names of quantized constants; path: of the float model."""

    folded: ir.Model | None
    samples: Samples
    path: str
    titles: Mapping[str, str]
    stored: frozenset[str]

    def of(self, network: Network) -> _Compared:
        """Runs both."""
        layers, size, samples = layers_of(network, self.titles, self.stored), BATCH_SIZE, self.samples
        if is_long(network, self.stored):
            size = min(size, images_within(network.model, MOST_BYTES, keeps_all=True))
        fixed = None if self.folded is None else batch_of(self.folded)
        if fixed is not None:
            size, samples = fixed, samples[: max(len(samples) - len(samples) % fixed, fixed)]
        visible = {name_of(value) for value in network.model.graph.inputs}
        visible |= {name_of(value) for node in network.model.graph for value in node.outputs}
        closely = [*(one.source for one in network.quantizers.values()), *inputs_of_concats(layers)]
        watched = [*network.quantizers, *(name_of(layer.node.outputs[0]) for layer in layers if layer.node)]
        comparison = None if self.folded is None else Comparison(network, self.folded, self.path)
        runs = run_both(
            network,
            samples,
            size=size,
            keep=SWITCHED,
            closely=[name for name in closely if name in visible],  # no value leaves a body
            watched=[name for name in watched if name in visible],
            told=comparison.add if comparison is not None else lambda *_: None,
        )
        near = None if comparison is None else comparison.closeness
        return _Compared(network=network, layers=layers, runs=runs, near=near)


def _against(network: Network, laboratory: _Laboratory, notes: list[str]) -> _Compared:
    """With the float model's weights, where these make it the float model."""
    if laboratory.folded is None:
        notes.append(
            "Without --against the file itself is the float model, its quantizers taken out: what the rounding of "
            "weights costs is not in these figures."
        )
        return laboratory.of(network)
    path, whole = laboratory.path, network.with_constants(matched(network.model, laboratory.folded))
    chosen = laboratory.of(whole)
    if chosen.order < SAME:
        chosen = max(chosen, laboratory.of(network), key=lambda one: one.order)
    if chosen.near is not None and chosen.near.without_db is not None and chosen.order < SAME:
        notes.append(
            f"Even without its quantizers the file is only {chosen.order:.1f} dB close to {path}: its weights were "
            "trained or its channels evened out, or it is another network. What layers cost is told within the file."
        )
    elif chosen.network is network and whole.constants:
        notes.append(
            f"The weights of the file are not those of {path} rounded (channels evened out, or trained): what their "
            "rounding costs is not in these figures."
        )
    return chosen


def inquire(
    quantized: Quantized,
    folded: ir.Model | None,
    samples: Samples,
    *,
    data: str,
    against: str = "",
    target: str | None = None,
    judged: Sequence[Kernel] | None = None,
    device: str = "cpu",
    notes: Sequence[str] = (),
    progress: ProgressFactory = silent,
) -> Diagnosis:
    """Run both networks, look for causes, and tell.

    Args:
        quantized: The file.
        folded: The float model, BatchNormalization folded; None for the file without its quantizers.
        samples: In the model's input units.
        data: What these are.
        against: The path of the float model.
        target: Whose kernels to judge by; by default the one that the file was written for, else "ort".
        judged: What the target makes of each node, where `lint` was asked before.
        device: Where networks run.
        notes: Told before.
        progress: Makes the display of one long stage.

    Raises:
        DataError: The samples do not fit, or the two are not the same network.
        InputError: Nothing in the file is quantized, or a body of it in another form than QDQ.
    """
    told = list(notes)
    model, plain = quantized.model, quantized.network(device)
    titles = {name_of(value): title for node, title in node_titles(model.graph).items() for value in node.outputs}
    stored = {one.value: one for one in (*quantized.quantizers.constants, *plain.inside)}
    if is_long(plain, frozenset(stored)):
        samples = samples[: max(FEW, batch_of(plain.model) or 1)]
    laboratory = _Laboratory(folded=folded, samples=samples, path=against, titles=titles, stored=frozenset(stored))
    compared = _against(plain, laboratory, told)
    network, layers, rules = (
        compared.network,
        compared.layers,
        target_of(read_provenance(model).get("target", "")) if target is None else load_target(target),
    )
    if not layers:
        raise InputError(f"{quantized.path} holds nothing quantized that its outputs depend on.")
    kernels = {found.node: found for found in (lint(model, rules) if judged is None else judged)}
    base = Diagnosis(
        file=str(quantized.path),
        against=against,
        by=quantized.by,
        target=rules.name,
        nodes_integer=sum(kernel.verdict == "integer" for kernel in kernels.values()),
        nodes_float=sum(kernel.verdict == "float" for kernel in kernels.values()),
        samples=len(samples),
        data=data,
        sqnr_db=None,
        layers=(),
        findings=(),
        notes=tuple(told),
    )
    if (broken := compared.runs.broken) is not None:
        finding = not_finite(titles.get(broken, broken), broken)
        return replace(base, findings=(finding,), not_finite=finding.layer)
    measured = measure(network, layers, stored, compared.runs, progress=progress)
    told.extend(_notes(measured, len(layers), len(samples)))
    inquiry = Inquiry(network=network, layers=layers, stored=stored, measured=measured, kernels=kernels, titles=titles)
    worst = max(measured.costs.outputs.values(), default=0.0)
    return replace(
        base,
        sqnr_db=decibel(worst, 1.0) if compared.near is None else compared.near.sqnr_db,
        layers=layer_reports(inquiry),
        findings=inquiry.findings(),
        notes=tuple(told),
    )


def _notes(measured: Measured, layers: int, samples: int) -> Iterator[str]:
    if measured.estimated:
        yield (
            f"The network is long: on {samples} inputs, the costs of {len(measured.estimated)} of its {layers} layers "
            "are estimated by gradients, to some 2 dB (≈), and those of the worst are measured."
        )
    if measured.left_out:
        yield f"{measured.left_out} layers of a long network were not measured; their figures are missing."
