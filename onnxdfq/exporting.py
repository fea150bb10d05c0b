"""torch.nn.Module to ONNX with its BatchNormalization kept, which torch's exporters fold by default."""

import inspect
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

from onnxdfq.errors import DfqError, OutputError
from onnxdfq.images.normalization import Normalization
from onnxdfq.model_file import check_writable, is_large, save_model
from onnxdfq.model_file.through_proto import infer_shapes
from onnxdfq.scratch import scratch_folder
from passes.write.provenance import WriteProvenance

Names = tuple[list[str], list[str]]  # of inputs and outputs

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

    Where torch's one exporter fails, or ONNX Runtime cannot run what it made, the other is tried, and a warning says
    so: each knows operators that the other lacks.

    Args:
        module: Keeps its training or evaluation mode.
        example: The input or inputs, (N, ...) each.
        path: Of the file to write.
        dynamo: Whether torch's newer exporter is tried first.
        normalize: Of the images that the module takes, as `Normalization.parse` reads it; written into the file, where
            `evaluate` finds it.
        force: Whether an existing file may be replaced.

    Raises:
        OutputError: The file cannot be written, or neither exporter makes valid ONNX of the module.
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
        names = _names(module, examples)  # what the module itself raises is its author's, and no exporter's
        model, used, failure = _exported(module, examples, names, dynamo=dynamo)
    finally:
        for part, training in modes.items():
            part.training = training
    if norm is not None:
        WriteProvenance({"norm": str(norm)})(model)
    save_model(model, Path(path), force=force)
    if failure:
        warnings.warn(f"{failure}; so {used} wrote {path}.", stacklevel=2)


def _exported(
    module: nn.Module, examples: tuple[Tensor, ...], names: Names, *, dynamo: bool
) -> tuple[ir.Model, str, str]:
    """The model, the exporter that made it, and what became of the one that was tried before, or ""."""
    failures: list[str] = []
    newer, older = ("torch's newer exporter", _with_dynamo), ("torch's TorchScript exporter", _with_torchscript)
    for title, exporter in (newer, older) if dynamo else (older, newer):
        try:
            model = exporter(module, examples, names)
            _check(model, examples, names)
        except Exception as error:  # torch's exporters also raise what their authors did not think of
            failures.append(f"{title} failed ({_reason(error)})")
        else:
            return model, title, "".join(failures)
    raise OutputError(f"Neither of torch's exporters can write this module: {'; '.join(failures)}.", exit_code=1)


def _check(model: ir.Model, examples: tuple[Tensor, ...], names: Names) -> None:
    """Raises what onnx.checker or ONNX Runtime has against the model. One too large for memory is left to writing."""
    if is_large(model):
        return
    infer_shapes(model, strict=True)  # as writing does: outputs need not have a shape yet
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = dict(zip(names[0], (np.asarray(tensor.detach().cpu()) for tensor in examples), strict=True))
    session.run(None, {entry.name: feeds[entry.name] for entry in session.get_inputs()})


def _reason(error: BaseException) -> str:
    """The first line of the first cause: torch wraps it in advice to its own developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\x1b\[\d+m", "", str(error)).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].strip().rstrip('.')}" if lines[0] else type(error).__name__


def _with_torchscript(module: nn.Module, examples: tuple[Tensor, ...], names: Names) -> ir.Model:
    inputs, outputs = names
    with scratch_folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the exporter as a whole, and each function in it
        file = folder / "model.onnx"
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


def _with_dynamo(module: nn.Module, examples: tuple[Tensor, ...], names: Names) -> ir.Model:
    from onnxscript import optimizer

    inputs, outputs = names
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


def _names(module: nn.Module, examples: tuple[Tensor, ...]) -> Names:
    """Names of the inputs, as `forward` has them, and of the outputs: `output`, or `output_0`, `output_1`, ..."""
    inputs = list(inspect.signature(module.forward).parameters)[: len(examples)]
    with torch.no_grad():
        result = module(*examples)
    count = 1 if isinstance(result, Tensor) else len(result)
    return inputs, ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
