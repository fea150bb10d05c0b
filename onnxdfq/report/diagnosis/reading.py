"""The files of a diagnosis, and what both networks are run on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from onnxdfq.errors import InputError, ModelFileError
from onnxdfq.images.dataset import load_data
from onnxdfq.images.feeding import Feeding
from onnxdfq.images.images import Images
from onnxdfq.images.normalization import Normalization
from onnxdfq.images.samples import Samples
from onnxdfq.methods.method import FloatModel, Note, Run
from onnxdfq.model_file import load_model, read_model
from onnxdfq.pipeline.images import held_back_or_drawn
from onnxdfq.progress import ProgressFactory
from onnxdfq.recipe.recipe import Recipe
from onnxdfq.report.diagnosis.matching import with_bounds
from onnxdfq.report.diagnosis.switches import Network
from onnxdfq.report.quantization import QDQ, quantization
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.quantize.quantizers import Quantizers
from passes.quantize.reading import read_quantizers
from passes.quantize.take_out import TakeOutQuantizers
from passes.write.provenance import read_provenance

OLDEST_OPSET = 13
MOST = 64  # samples of the user's own that are looked at


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """A QDQ file. model: with inferred types. by: which tool wrote it. quantizers: with bounds where they took the
    place of a Relu."""

    path: Path
    model: ir.Model
    by: str
    quantizers: Quantizers

    @property
    def ours(self) -> bool:
        """Whether onnxdfq wrote it."""
        return "bits" in read_provenance(self.model)

    def network(self, device: str) -> Network:
        """With a switch for each quantizer. Raises InputError."""
        try:
            return Network.of(self.model, self.quantizers, device)
        except ValueError as error:
            raise _unreadable(self.path, error) from error


def read_quantized(path: Path, original: ir.Model | None) -> Quantized:
    """The file at `path`.

    Raises:
        InputError: It is float, or quantized in another form than QDQ.
        ModelFileError: It cannot be read.
    """
    return quantized_of(read_model(path, inferred=True), path, original)


def quantized_of(model: ir.Model, path: Path, original: ir.Model | None) -> Quantized:
    """A model as `read_quantized` gives it. Its constants become initializers.

    Args:
        model: With inferred types.
        path: Of its file.
        original: The float model, BatchNormalization folded; None without.

    Raises:
        InputError, ModelFileError: As `read_quantized` does.
    """
    found = quantization(model)
    if not found:
        raise InputError(
            f"{path} is a float model, and there is nothing to diagnose: give the quantized file; "
            f"onnxdfq compress {path} makes one."
        )
    form = str(found["form"])
    if form != QDQ or not found["activations"]:
        what = form if form != QDQ else "weights alone"
        raise InputError(
            f"{path} is quantized in the form {what!r}, and diagnose reads Quantize/Dequantize around activations; "
            "write the file in that form (--target ort)."
        )
    opset = model.graph.opset_imports.get("", 0)
    if opset < OLDEST_OPSET:
        raise ModelFileError(
            f"{path} is of opset {opset}, and diagnose reads opset {OLDEST_OPSET} and newer; convert it first."
        )
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    try:
        quantizers = read_quantizers(model.graph)
    except ValueError as error:
        raise _unreadable(path, error) from error
    quantized = Quantized(path=path, model=model, by=str(found["by"]), quantizers=quantizers)
    if quantized.ours:
        return quantized
    bounded = with_bounds(quantizers, model.graph, None if original is None else original.graph)
    return Quantized(path=path, model=model, by=quantized.by, quantizers=bounded)


def _unreadable(path: Path, error: ValueError) -> InputError:
    return InputError(f"{path} cannot be diagnosed: {error}; diagnose reads plain Quantize/Dequantize.")


def network_of(quantized: Quantized) -> ir.Model:
    """The file without its quantizers."""
    model = quantized.model.clone()
    TakeOutQuantizers(quantized.quantizers)(model)
    return model


def read_original(
    path: Path,
    *,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    fed: Mapping[str, str] | None = None,
) -> tuple[ir.Model, ir.Model]:
    """The float model, canonical: with its BatchNormalizations, and with these folded.

    Args:
        path, input_shape, fed: As `load_model` has them.

    Raises:
        InputError: It cannot be read, or is quantized.
    """
    model = load_model(path, input_shape=input_shape, fed=fed)
    Canonicalize()(model)
    return model, folded(model)


def folded(model: ir.Model) -> ir.Model:
    """A copy, BatchNormalization folded."""
    copy = model.clone()
    FoldBatchNorm()(copy)
    return copy


def samples_for(
    model: ir.Model,
    data: Any,
    *,
    path: Path,
    normalize: str | None,
    seed: int,
    device: str,
    progress: ProgressFactory,
    tell: Callable[[str], None],
) -> tuple[Samples, str]:
    """What the networks are run on, and what that is in words.

    Args:
        model: A float network.
        data: The user's own, as `load_data` reads it; or images; None to make dead leaves, or noise.
        path: Of the file.
        normalize: How inputs were normalised, where the file does not say.
        seed: What is made is drawn from it.
        device: Where it is made.
        progress: Makes the display of one long stage.
        tell: Takes a sentence that the user should read.

    Raises:
        DataError: The data does not fit.
    """
    text = normalize or read_provenance(model).get("norm")
    normalization = None if text is None else Normalization.parse(text)
    if isinstance(data, Images):
        return data.first(MOST).samples, data.method
    if data is not None:
        feeding = Feeding(model)
        found = load_data(data, spec=feeding.main, others=feeding.others, normalization=normalization, limit=MOST)
        return next(found.samples(MOST)), "data"

    def told(note: object) -> None:
        if isinstance(note, Note):
            tell(note.text)

    run = Run(recipe=Recipe(seed=seed), device=device, progress=progress, tell=told)
    made = held_back_or_drawn(FloatModel(graph=model, source=path, normalization=normalization), run)
    return made.samples, made.method
