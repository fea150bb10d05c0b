"""From a quantized model, a float one and samples to a `Diagnosis`."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxdfq.errors import InputError
from onnxdfq.images.samples import Samples
from onnxdfq.progress import ProgressFactory, silent
from onnxdfq.recipe.names import target_names
from onnxdfq.report.diagnosis.cases import Inquiry
from onnxdfq.report.diagnosis.closeness import closeness
from onnxdfq.report.diagnosis.evidence import decibel
from onnxdfq.report.diagnosis.layers import layers_of
from onnxdfq.report.diagnosis.matching import matched
from onnxdfq.report.diagnosis.measuring import measure
from onnxdfq.report.diagnosis.reading import Quantized
from onnxdfq.report.diagnosis.result import Diagnosis
from onnxdfq.report.diagnosis.switches import Network
from onnxdfq.report.diagnosis.tables import layer_reports
from onnxdfq.targets import load_target
from passes.graph.editing import name_of, node_titles
from passes.lint.lint import lint
from passes.target.target import Target
from passes.write.provenance import read_provenance

SAME = 20.0  # dB between the float model and the file without its quantizers; less, and something else differs, too


@dataclass(frozen=True, kw_only=True, eq=False)
class _Compared:
    """The network to measure. sqnr_db: of the quantized one against the float model as it was given."""

    network: Network
    sqnr_db: float | None = None
    told: bool = False


def _against(network: Network, folded: ir.Model | None, samples: Samples, path: str, notes: list[str]) -> _Compared:
    """With the float model's weights, where these make it the float model."""
    if folded is None:
        notes.append(
            "Without --against the file itself is the float model, its quantizers taken out: what the rounding of "
            "weights costs is not in these figures."
        )
        return _Compared(network=network)
    whole = network.with_constants(matched(network.model, folded))
    candidates = [(one, closeness(one, folded, samples, path)) for one in (whole, network)]
    chosen, near = candidates[0]
    if near.without_db is not None and near.without_db < SAME:
        chosen, near = max(candidates, key=lambda pair: pair[1].order)
    if near.without_db is not None and near.without_db < SAME:
        notes.append(
            f"Even without its quantizers the file is only {near.without_db:.1f} dB close to {path}: its weights were "
            "trained or its channels evened out, or it is another network. What layers cost is told within the file."
        )
    elif chosen is network and whole.constants:
        notes.append(
            f"The weights of the file are not those of {path} rounded (channels evened out, or trained): what their "
            "rounding costs is not in these figures."
        )
    return _Compared(network=chosen, sqnr_db=near.sqnr_db, told=True)


def inquire(
    quantized: Quantized,
    folded: ir.Model | None,
    samples: Samples,
    *,
    data: str,
    against: str = "",
    target: str | None = None,
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
        device: Where networks run.
        notes: Told before.
        progress: Makes the display of one long stage.

    Raises:
        DataError: The samples do not fit, or the two are not the same network.
        InputError: Nothing in the file is quantized.
    """
    told = list(notes)
    model, plain = quantized.model, Network.of(quantized.model, quantized.quantizers, device)
    compared = _against(plain, folded, samples, against, told)
    network, rules = compared.network, _target(target or read_provenance(model).get("target", ""))
    titles = {name_of(value): title for node, title in node_titles(model.graph).items() for value in node.outputs}
    stored = {one.value: one for one in quantized.quantizers.constants}
    layers = layers_of(network, titles, frozenset(stored))
    if not layers:
        raise InputError(f"{quantized.path} holds nothing quantized that its outputs depend on.")
    measured = measure(network, layers, stored, samples, progress=progress)
    if measured.left_out:
        told.append(f"{measured.left_out} measurements of a long network were left out; their figures are missing.")
    kernels = {found.node: found for found in lint(model, rules)}
    inquiry = Inquiry(network=network, layers=layers, stored=stored, measured=measured, kernels=kernels, titles=titles)
    worst = max(measured.costs.outputs.values(), default=0.0)
    return Diagnosis(
        file=str(quantized.path),
        against=against,
        by=quantized.by,
        target=rules.name,
        nodes_integer=sum(kernel.verdict == "integer" for kernel in kernels.values()),
        nodes_float=sum(kernel.verdict == "float" for kernel in kernels.values()),
        samples=len(samples),
        data=data,
        sqnr_db=compared.sqnr_db if compared.told else decibel(worst, 1.0),
        layers=layer_reports(inquiry),
        findings=inquiry.findings(),
        notes=tuple(told),
    )


def _target(name: str) -> Target:
    return load_target(name if name in target_names() else "ort")
