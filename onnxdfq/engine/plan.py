"""A plan: the steps that remain of a graph once the shapes of its inputs are fixed.

Exported graphs are full of shape arithmetic (Shape, Gather, Concat, Reshape ...). For one set of input shapes all of
that is constant, so it is computed once, on the CPU. What remains is a flat list of steps without branches, which costs
no more than a hand-written module and which torch.compile can trace as one graph.

A value is *constant* when it follows from Constant nodes and integer initializers alone, or from the shape of another
value. Shapes come from running the nodes before a Shape on torch's meta device, which allocates and computes nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from onnxdfq.engine.host import HostValue
from onnxdfq.engine.operation import Operation
from onnxdfq.errors import InputError

METADATA_INPUTS: dict[str, tuple[int, ...]] = {"Shape": (0,), "Size": (0,), "CastLike": (1,)}
"""Operators that read only the shape and type of some inputs, by position."""


REASON = 300  # characters of what torch says, at most


Arguments: TypeAlias = tuple[str | HostValue | None, ...]
"""Arguments of a function: a string is the name of a value, anything else is passed as it is."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of a function."""

    label: str
    function: Callable[..., Any]
    arguments: Arguments
    outputs: tuple[str, ...]
    yields: tuple[str, ...]  # the outputs of the plan that it computes
    frees: tuple[str, ...]  # the values that no later step reads


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Steps in order, and the constant values that they or the caller read."""

    steps: tuple[Step, ...]
    constants: Mapping[str, Tensor]


def execute(plan: Plan, values: dict[str, Tensor]) -> Iterator[str]:
    """Runs the steps and yields the name of each output once it is computed.

    Args:
        plan: For the shapes of the inputs.
        values: By name, inputs, parameters and constants; results are added to it, and freed after their last reader.
    """
    for step in plan.steps:
        _call(step, values)
        yield from step.yields
        for name in step.frees:
            values.pop(name, None)  # an optional output may never have been there


def _call(step: Step, values: dict[str, Tensor]) -> None:
    # A function of its own, so that no local variable outlives the value that `execute` frees.
    arguments = [values[argument] if isinstance(argument, str) else argument for argument in step.arguments]
    try:
        results = step.function(*arguments)
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:REASON].rstrip(".")
        raise InputError(
            f"{step.label} cannot be computed: {reason}; check the sizes and the attributes of that node."
        ) from error
    if isinstance(results, Tensor):
        values[step.outputs[0]] = results
    else:
        # Optional outputs may be left out: at the end, or by an empty name.
        values.update((name, result) for name, result in zip(step.outputs, results, strict=False) if name)


def make_plan(
    operations: Sequence[Operation],
    *,
    inputs: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    constants: Mapping[str, Tensor],
    outputs: Sequence[str],
    device: torch.device,
) -> Plan:
    """Computes what is constant for these input shapes, and lists the rest as steps.

    To be called outside of autocast and inference mode, for the plan outlives both.

    Args:
        operations: In topological order.
        inputs: By name, on the meta device.
        parameters: Float initializers. Where an operator takes Python numbers, one that does not train is read once.
        constants: Integer initializers.
        outputs: Names of the values to return.
        device: Of the constants that steps read.
    """
    known = {name: tensor.cpu() for name, tensor in constants.items()}
    readable = {name: tensor.detach().cpu() for name, tensor in parameters.items() if not tensor.requires_grad}
    shaped = dict(inputs) | {name: torch.empty_like(tensor, device="meta") for name, tensor in parameters.items()}
    wanted = _ancestors_of_shapes(operations)
    pending: list[tuple[Operation, Arguments]] = []

    for position, operation in enumerate(operations):
        arguments = _arguments(operation, known, readable)
        foreseeable = operation.foreseeable
        by_shape = METADATA_INPUTS.get(operation.op_type, ())
        if foreseeable and all(
            not isinstance(argument, str) or argument in known or (index in by_shape and argument in shaped)
            for index, argument in enumerate(arguments)
        ):
            known |= _evaluate(
                operation, arguments, {name: known.get(name, shaped.get(name)) for name in operation.inputs}
            )
            continue
        pending.append((operation, arguments))
        if position in wanted and foreseeable:
            visible = {name: shaped[name] for name in operation.inputs if name in shaped}
            visible |= {name: known[name].to("meta") for name in operation.inputs if name in known}
            if all(
                not isinstance(argument, str) or (argument in visible and not operation.must_read(index))
                for index, argument in enumerate(arguments)
            ):
                shaped |= _evaluate(operation, arguments, visible)

    steps = _with_lifetimes(pending, inputs=inputs, outputs=outputs)
    read = {argument for step in steps for argument in step.arguments if isinstance(argument, str)} | set(outputs)
    return Plan(steps=steps, constants={name: known[name].to(device) for name in known.keys() & read})


def _arguments(operation: Operation, known: Mapping[str, Tensor], readable: Mapping[str, Tensor]) -> Arguments:
    """The arguments of an operation; host values are numbers where these are constant."""
    arguments: list[str | HostValue | None] = []
    for position, name in enumerate(operation.inputs):
        argument: Any = name or None
        host = operation.host.get(position)
        source = known.get(name, readable.get(name))
        if host is not None and source is not None:
            value = host.read(source)
            argument = name if isinstance(value, Tensor) else value
        arguments.append(argument)
    return tuple(arguments)


def _evaluate(operation: Operation, arguments: Arguments, values: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """The results of one operation on constants, or on meta tensors."""
    step = Step(
        label=operation.label,
        function=operation.function,
        arguments=arguments,
        outputs=operation.outputs,
        yields=(),
        frees=(),
    )
    results = {name: tensor for name, tensor in values.items() if tensor is not None}
    _call(step, results)
    return {name: results[name] for name in operation.outputs if name in results}


def _ancestors_of_shapes(operations: Sequence[Operation]) -> frozenset[int]:
    """Positions of the operations on whose results the input of some Shape, Size or CastLike depends."""
    names: set[str] = set()
    found = set()
    for position in reversed(range(len(operations))):
        operation = operations[position]
        if names.intersection(operation.outputs):
            found.add(position)
            names.update(operation.inputs)
        names.update(operation.inputs[index] for index in METADATA_INPUTS.get(operation.op_type, ()))
    return frozenset(found)


def _with_lifetimes(
    pending: Sequence[tuple[Operation, Arguments]],
    *,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
) -> tuple[Step, ...]:
    """The steps, each with the values that it frees: inputs and results after their last reader, each exactly once."""
    mortal = set(inputs).union(*(operation.outputs for operation, _ in pending)) - {""}
    place = {name: place for place, name in enumerate(dict.fromkeys(outputs))}
    steps = []
    for operation, arguments in reversed(pending):
        touched = dict.fromkeys([a for a in arguments if isinstance(a, str)] + list(operation.outputs))
        frees = tuple(name for name in touched if name in mortal)
        mortal.difference_update(frees)
        steps.append(
            Step(
                label=operation.label,
                function=_reading(operation, arguments),
                arguments=arguments,
                outputs=operation.outputs,
                yields=tuple(sorted(place.keys() & operation.outputs, key=place.__getitem__)),
                frees=frees,
            )
        )
    return tuple(reversed(steps))


def _reading(operation: Operation, arguments: Arguments) -> Callable[..., Any]:
    """The function itself, or one that first reads as numbers the required host values that depend on data."""
    late = {
        position: operation.host[position].read
        for position, argument in enumerate(arguments)
        if isinstance(argument, str) and operation.must_read(position)
    }
    if not late:
        return operation.function

    def read_then_call(*values: Any) -> Any:
        with values[min(late)].device:  # what is made of nothing but numbers (Range, ConstantOfShape) belongs there too
            return operation.function(
                *(late[index](value) if index in late else value for index, value in enumerate(values))
            )

    return read_then_call
