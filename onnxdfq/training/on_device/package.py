"""`write_package`: what a device needs to go on training a model, in a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.external_data_helper import set_external_data
from onnx_ir.passes import common

from onnxdfq.errors import InputError, OutputError
from onnxdfq.model_file import main_input, read_model
from onnxdfq.model_file.convert import convert
from onnxdfq.model_file.saving import is_large, stage_model
from onnxdfq.model_file.sizes import fix_input_shapes
from onnxdfq.model_file.through_proto import infer_shapes
from onnxdfq.model_file.writing import Staged, check_folder, make_folder, staging
from onnxdfq.recipe.names import one_of
from onnxdfq.training.on_device.readme import readme
from passes.graph.editing import name_of
from passes.training.losses import Loss
from passes.training.optimizers import Optimizer
from passes.training.parameters import Choice, Parameter, find_parameters
from passes.training.step import SHIPPED, Step, training_step

CHOICES: tuple[Choice, ...] = ("head", "biases", "scales", "all")
LOSSES: tuple[Loss, ...] = ("cross-entropy", "mse")
OPTIMIZERS: tuple[Optimizer, ...] = ("adam", "sgd")
OLDEST_OPSET = 17
"""Of the step: older ones add nothing up where numbers meet."""
FILES = ("step.onnx", "infer.onnx", "infer.onnx.data", "state.npz", "train.py", "README.md")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a package trains, and how. output: name of the one that the loss is of; None for the only one."""

    train: Choice = "head"
    loss: Loss = "cross-entropy"
    optimizer: Optimizer = "adam"
    output: str | None = None

    def __post_init__(self) -> None:
        one_of("choice of parameters", self.train, CHOICES, field="train")
        one_of("loss", self.loss, LOSSES, field="loss")
        one_of("optimizer", self.optimizer, OPTIMIZERS, field="optimizer")


@dataclass(frozen=True, kw_only=True)
class Package:
    """What was written. parameters: how many numbers train, and in how many tensors. state_bytes: of state.npz, before
    it is packed. notes: sentences for the user."""

    path: Path
    parameters: int
    tensors: int
    state_bytes: int
    notes: tuple[str, ...]


def write_package(
    source: Path,
    folder: Path,
    training: Training,
    *,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    force: bool = False,
) -> Package:
    """Writes a package: `FILES`.

    Args:
        source: A QDQ model, or a float one.
        folder: To write to.
        training: What trains.
        input_shape: Sizes that the file leaves open.
        force: Whether the files of an older package may be replaced.

    Raises:
        ModelFileError: The model cannot be read.
        InputError: It cannot train so; names the node, or says what it lacks.
        OutputError: The folder exists, or cannot be written.
    """
    check_new(folder, force=force)
    model = opened(source, input_shape)
    output = trained_output(model, training.output)
    try:
        parameters = find_parameters(model.graph, output, training.train)
        step = training_step(
            _of_new_opset(model, source), name_of(output), parameters, loss=training.loss, optimizer=training.optimizer
        )
    except ValueError as error:
        raise InputError(f"{source} cannot train: {error}.") from error
    notes = _notes(model, parameters)
    make_folder(folder)
    with staging(force=force) as staged:
        stage_model(step.model, folder / "step.onnx", staged, inner_shapes=False)
        _stage_inference(model, step, folder, staged)
        with staged.file(folder / "state.npz") as file:
            np.savez(file, **step.state)  # type: ignore[arg-type]
        _stage_text(staged, folder / "train.py", Path(__file__).with_name("loop.py").read_text(encoding="utf-8"))
        _stage_text(staged, folder / "README.md", readme(model, step, parameters, training, notes))
    return Package(
        path=folder,
        parameters=sum(one.start.size for one in parameters),
        tensors=len(parameters),
        state_bytes=sum(array.nbytes for array in step.state.values()),
        notes=notes,
    )


def check_new(folder: Path, *, force: bool) -> None:
    """Refuses a folder that is there, before any work.

    Raises:
        OutputError: It exists without `force`, or cannot be written.
    """
    check_folder(folder)
    if folder.is_dir() and not force:
        raise OutputError(f"{folder} exists; give another name with -o, or --force to replace what it holds.")


def opened(source: Path, input_shape: Mapping[str, Sequence[int]] | None) -> ir.Model:
    """The model with its constants as initializers and its shapes inferred; only batches are free.

    Raises:
        ModelFileError, ShapeError: It cannot be read, or a size stays open.
        InputError: Its weights do not fit one file beside their gradients.
    """
    model = read_model(source, inferred=True)
    if is_large(model):
        raise InputError(f"{source} holds more than 2 GB of weights; a step that trains them does not fit one file.")
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    fix_input_shapes(model, input_shape)
    infer_shapes(model, strict=False)
    return model


def trained_output(model: ir.Model, name: str | None) -> ir.Value:
    """The output that the loss is of. Raises InputError: there is none of this name, or none is named of several."""
    outputs = {name_of(value): value for value in model.graph.outputs}
    if name is not None:
        one_of("output", name, list(outputs), field="loss_on")
    elif len(outputs) > 1:
        raise InputError(
            f"The model has the outputs {', '.join(map(repr, outputs))}; say which one the loss is of.", field="loss_on"
        )
    return outputs[name] if name is not None else next(iter(outputs.values()))


def _of_new_opset(model: ir.Model, source: Path) -> ir.Model:
    newer = convert(model, source, opset=OLDEST_OPSET, compare=False)
    if newer is not model:
        infer_shapes(newer, strict=False)
    return newer


def _notes(model: ir.Model, parameters: Sequence[Parameter]) -> tuple[str, ...]:
    notes = []
    batch = main_input(model).batch
    if batch is not None:
        notes.append(f"The model takes {batch} samples at a time, and so does each step of training.")
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph)
    if not quantized:
        notes.append("Nothing in the model is quantized: it trains, and infers, in float.")
    if any(one.kind == "scale" for one in parameters):
        notes.append(
            "Scales may take any value once they train; kernels that shift where they should multiply do not take them."
        )
    return tuple(notes)


def _stage_inference(model: ir.Model, step: Step, folder: Path, staged: Staged) -> None:
    """The model as it was, with what trains in a file of its own, in the order of the state."""
    proto = ir.to_proto(model)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    with staged.file(folder / "infer.onnx") as file:
        with staged.file(folder / "infer.onnx.data") as data, data.open("wb") as stream:
            for name, array in shipped(step).items():
                raw = np.ascontiguousarray(array).tobytes()
                tensors[name].CopyFrom(onnx.numpy_helper.from_array(array, name))
                set_external_data(tensors[name], data.name, offset=stream.tell(), length=len(raw))
                tensors[name].ClearField("raw_data")
                stream.write(raw)
        file.write_bytes(proto.SerializeToString(deterministic=True))
        onnx.checker.check_model(file, full_check=True)


def shipped(step: Step) -> dict[str, NDArray[np.generic]]:
    """Initializers of infer.onnx that training changes, by name."""
    return {key.removeprefix(SHIPPED): array for key, array in step.state.items() if key.startswith(SHIPPED)}


def _stage_text(staged: Staged, place: Path, text: str) -> None:
    with staged.file(place) as file:
        file.write_text(text, encoding="utf-8")
