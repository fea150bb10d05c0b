"""torch.nn.Module to ONNX with its BatchNormalization kept, which torch's exporters fold by default."""

import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from onnxdfq.errors import DfqError
from onnxdfq.images.normalization import Normalization
from onnxdfq.model_file import check_writable, save_model
from passes.write.provenance import WriteProvenance

_OPSET = 21
_TORCHSCRIPT_OPSET = 17  # that exporter ends at 20, and its later operators are little tried


def export(
    module: nn.Module,
    example: Tensor | Sequence[Tensor],
    path: Path | str,
    *,
    dynamo: bool = False,
    normalize: Normalization | str | None = None,
    force: bool = False,
) -> None:
    """Writes a module in evaluation mode to `path`, batch free, each BatchNormalization a node of its own.

    Args:
        module: Keeps its training or evaluation mode.
        example: The input or inputs, (N, ...) each.
        path: Of the file to write.
        dynamo: Whether torch's newer exporter is used.
        normalize: Of the images that the module takes, as `Normalization.parse` reads it; written into the file, where
            `evaluate` finds it.
        force: Whether an existing file may be replaced.

    Raises:
        OutputError: The file cannot be written, or is not valid ONNX.
        DataError: `normalize` cannot be read.
        DfqError: onnxscript, which torch's exporters need, is not installed.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise DfqError("Exporting needs onnxscript: pip install 'onnxdfq[export]'.") from error
    norm = Normalization.parse(normalize) if isinstance(normalize, str) else normalize
    check_writable(Path(path), force=force)
    examples = (example,) if isinstance(example, Tensor) else tuple(example)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        model = _with_dynamo(module, examples) if dynamo else _with_torchscript(module, examples)
    finally:
        for part, training in modes.items():
            part.training = training
    if norm is not None:
        WriteProvenance({"norm": str(norm)})(model)
    save_model(model, Path(path), force=force)


def _with_torchscript(module: nn.Module, examples: tuple[Tensor, ...]) -> ir.Model:
    inputs, outputs = _names(module, examples)
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the exporter as a whole, and each function in it
        file = Path(folder) / "model.onnx"
        torch.onnx.export(
            module,
            examples,
            file,
            dynamo=False,
            # PRESERVE with the module in evaluation mode: EVAL would fuse each BatchNormalization into its Conv.
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            opset_version=_TORCHSCRIPT_OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in (*inputs, *outputs)},
        )
        model = ir.load(file)
        ir.external_data.load_to_model(model)
    return model


def _with_dynamo(module: nn.Module, examples: tuple[Tensor, ...]) -> ir.Model:
    from onnxscript import optimizer

    inputs, outputs = _names(module, examples)
    # torch.export takes a batch of 1 for a constant: such an example is doubled.
    doubled = tuple(torch.cat([tensor, tensor]) if len(tensor) == 1 else tensor for tensor in examples)
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        # torch 2.13 uses its own deprecated class when it copies a program, and calls it odd that inputs share a batch.
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*The axis name: batch will not be used", category=UserWarning)
        program = torch.onnx.export(
            module,
            doubled,
            dynamo=True,
            optimize=False,  # the optimizer folds BatchNormalization
            opset_version=_OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=tuple({0: batch} for _ in doubled),
            verbose=False,
        )
    assert program is not None
    model = program.model
    common.InlinePass()(model)
    optimizer.fold_constants(model)
    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    return model


def _names(module: nn.Module, examples: tuple[Tensor, ...]) -> tuple[list[str], list[str]]:
    """Names of the inputs, as `forward` has them, and of the outputs: `output`, or `output_0`, `output_1`, ..."""
    inputs = list(inspect.signature(module.forward).parameters)[: len(examples)]
    with torch.no_grad():
        result = module(*examples)
    count = 1 if isinstance(result, Tensor) else len(result)
    return inputs, ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
