"""Training on the device: `finetune_package`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxdfq.model_file.runtime import op_libraries
from onnxdfq.pipeline.arguments import as_file
from onnxdfq.recipe.names import one_of

if TYPE_CHECKING:
    from onnxdfq.pipeline.arguments import ModelLike
    from onnxdfq.training.on_device.package import Package
    from passes.training.losses import Loss
    from passes.training.optimizers import Optimizer
    from passes.training.parameters import Choice

ONNX, ORT_TRAINING = "onnx", "ort-training"


def finetune_package(
    model: ModelLike,
    *,
    output: Path | str,
    train: Choice = "head",
    loss: Loss = "cross-entropy",
    optimizer: Optimizer = "adam",
    loss_on: str | None = None,
    format: str = ONNX,
    ort_training_python: Path | str | None = None,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    op_library: Sequence[Path | str] = (),
    force: bool = False,
) -> Package:
    """Write what a device needs to go on training a model, with ONNX Runtime alone.

    Args:
        model: a path, or a model in memory: of QDQ form, as `compress` writes it, or float.
        output: the folder to write to: `step.onnx`, `infer.onnx`, `state.npz`, `train.py` and a README.
        train: "head" (the last layer), "biases", "scales" (of quantizers) or "all"; with "all", scales that are powers
            of two stay.
        loss: "cross-entropy" with labels, or "mse" with targets. optimizer: "adam" or "sgd", with momentum.
        loss_on: the output that the loss is of, where there are several.
        format: "onnx", or "ort-training": the four artefacts of onnxruntime-training 1.19.2, which train the float
            network. ort_training_python: the interpreter of an environment that has it; it is run.
        input_shape, op_library: as for `compress`.
        force: whether the files of an older package may be replaced.

    Returns:
        What was written: how many numbers train, in how many tensors, and the bytes of the state.

    Raises:
        InputError: it cannot train so; names the node that has no gradient, or says what the model lacks.
        OutputError: the folder exists, or cannot be written.
    """
    from onnxdfq.training.on_device.package import Training, write_package

    one_of("format", format, (ONNX, ORT_TRAINING), field="format")
    training = Training(train=train, loss=loss, optimizer=optimizer, output=loss_on)
    with op_libraries(op_library), as_file(model) as path:
        if format == ORT_TRAINING:
            from onnxdfq.training.on_device.ort_training import write_artifacts

            python = None if ort_training_python is None else Path(ort_training_python)
            return write_artifacts(path, Path(output), training, python, input_shape=input_shape, force=force)
        return write_package(path, Path(output), training, input_shape=input_shape, force=force)
