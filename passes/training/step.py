"""`training_step`: forward, loss, backward and optimizer in one graph, a function of a batch and a state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from passes.graph.editing import drop_unused_initializers, required_name
from passes.training.backward import differentiate
from passes.training.losses import Loss, add_loss
from passes.training.opening import next_initializer, open_parameter
from passes.training.optimizers import Optimizer, update
from passes.training.parameters import Parameter
from passes.training.tape import Tape

NEXT, SHIPPED, PARAMETER = "next:", "infer:", "parameter:"
RATE, LOSS = "learning_rate", "loss"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of training.

    model: takes the model's inputs, `labels` or `target`, `learning_rate` and the state; gives `loss`, `next:KEY` for
    every key of the state, and `next:infer:NAME`: what the initializer of this name becomes in the file that infers.
    state: where training starts, by key; "infer:NAME" among them, which no input takes.
    """

    model: ir.Model
    state: Mapping[str, NDArray[np.generic]]


def training_step(
    model: ir.Model, output: str, parameters: Sequence[Parameter], *, loss: Loss, optimizer: Optimizer
) -> Step:
    """The step that trains these parameters.

    Args:
        model: Float or QDQ, with inferred shapes, its constants all initializers; it is only read.
        output: Name of the graph output that the loss is of.
        parameters: As `find_parameters` gives them.
        loss, optimizer: See `add_loss` and `update`.

    Raises:
        NotDifferentiable: A node between the parameters and the loss has no gradient.
        ValueError: The loss does not fit the output.
    """
    model = model.clone()
    graph, state = model.graph, dict[str, NDArray[np.generic]]()
    tape = Tape(graph)

    def enter(key: str, start: NDArray[np.float32]) -> ir.Value:
        state[key] = start
        value = ir.val(key, ir.DataType.FLOAT, start.shape)
        graph.inputs.append(value)
        return value

    written = {one.name: graph.initializers[one.name] for one in parameters}
    for one in parameters:
        state[SHIPPED + one.name] = _array(written[one.name])
    trained = {PARAMETER + one.name: enter(PARAMETER + one.name, one.start) for one in parameters}
    # scales last: what quantizes weights reads them by then
    opened = {one.name: open_parameter(tape, one, trained[PARAMETER + one.name]) for one in _scales_last(parameters)}
    graph.sort()
    judged = add_loss(tape, next(value for value in graph.outputs if value.name == output), loss)
    rate = ir.val(RATE, ir.DataType.FLOAT, ())
    graph.inputs.extend((judged.target, rate))

    gradients = differentiate(tape, judged.seeds, list(trained.values()))
    after = update(tape, optimizer, {key: (value, gradients[value]) for key, value in trained.items()}, rate, enter)
    new = {one.name: after[PARAMETER + one.name] for one in parameters}
    shipped = {SHIPPED + one.name: next_initializer(tape, one, opened[one.name], new) for one in parameters}

    graph.outputs.clear()
    graph.outputs.append(_output(tape, LOSS, judged.value, np.zeros((), np.float32)))
    for key, value in {**after, **shipped}.items():
        graph.outputs.append(_output(tape, NEXT + key, value, state[key]))
    graph.sort()
    common.RemoveUnusedNodesPass()(model)
    drop_unused_initializers(graph)
    return Step(model=model, state=state)


def _scales_last(parameters: Sequence[Parameter]) -> list[Parameter]:
    return sorted(parameters, key=lambda one: one.kind == "scale")


def _array(value: ir.Value) -> NDArray[np.generic]:
    if value.const_value is None:
        raise ValueError(f"the initializer {required_name(value)} has no data")
    return value.const_value.numpy()


def _output(tape: Tape, name: str, value: ir.Value, like: NDArray[np.generic]) -> ir.Value:
    found = tape.op("Identity", value, name=name)
    found.dtype, found.shape = ir.DataType.from_numpy(like.dtype), ir.Shape(like.shape)
    return found
