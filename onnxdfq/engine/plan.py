"""A plan: the steps that remain of a graph once the shapes of its inputs are known.

Exported graphs are full of shape arithmetic (Shape, Gather, Concat, Reshape ...). For one set of input shapes all of
that is constant, so it is done once, on the CPU, and frozen. What remains is a flat list of steps without a decision in
it, which costs no more than a hand-written module and which torch.compile can trace as one graph.

A value is *known* when it follows from constants and integer initializers alone, or from the shape of another value.
Shapes are found by running the nodes that lead to a Shape on torch's meta device: no memory, no arithmetic.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from onnxdfq.engine.host import HostValue
from onnxdfq.engine.operation import Operation

METADATA_INPUTS: dict[str, tuple[int, ...]] = {"Shape": (0,), "Size": (0,), "CastLike": (1,)}
"""Operators of which some inputs (by position) matter by shape and type only."""

DATA_DEPENDENT: frozenset[str] = frozenset({"Compress", "NonMaxSuppression", "NonZero", "RoiAlign", "Unique"})
"""Operators that read their data to find their output: they cannot be run by shape alone."""


Arguments: TypeAlias = tuple[str | HostValue | None, ...]
"""What a function is called with: a string is the name of a value, anything else is passed as it is."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call."""

    label: str
    function: Callable[..., Any]
    arguments: Arguments
    outputs: tuple[str, ...]
    yields: tuple[str, ...]  # the requested values that it computes
    frees: tuple[str, ...]  # the values that nobody needs after it


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Steps in order, and the known values that they or the caller read."""

    steps: tuple[Step, ...]
    constants: Mapping[str, Tensor]


def execute(plan: Plan, values: dict[str, Tensor]) -> Iterator[str]:
    """Runs the steps over `values` in place; yields the name of each requested value once it is there."""
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
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        error.add_note(f"while running {step.label}")
        raise
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
    requested: Sequence[str],
    device: torch.device,
) -> Plan:
    """Splits the operations into what is known and what has to run. Call it outside of autocast and inference mode.

    Args:
        operations: in topological order.
        inputs: graph inputs, on the meta device.
        parameters: float initializers. Where an operator takes Python numbers, one that does not train is read once.
        constants: integer initializers.
        requested: the names of the values to return.
        device: where the known values that steps read are kept.
    """
    known = {name: tensor.cpu() for name, tensor in constants.items()}
    readable = {name: tensor.detach().cpu() for name, tensor in parameters.items() if not tensor.requires_grad}
    shaped = dict(inputs) | {name: torch.empty_like(tensor, device="meta") for name, tensor in parameters.items()}
    wanted = _ancestors_of_shapes(operations)
    pending: list[tuple[Operation, Arguments]] = []

    for position, operation in enumerate(operations):
        arguments = _arguments(operation, known, readable)
        foreseeable = operation.op_type not in DATA_DEPENDENT
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

    steps = _with_lifetimes(pending, inputs=inputs, requested=requested)
    read = {argument for step in steps for argument in step.arguments if isinstance(argument, str)} | set(requested)
    return Plan(steps=steps, constants={name: known[name].to(device) for name in known.keys() & read})


def _arguments(operation: Operation, known: Mapping[str, Tensor], readable: Mapping[str, Tensor]) -> Arguments:
    """The inputs of an operation, host values read where they are known."""
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
    """The results of one operation, of known values or, without data, of shapes."""
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
    """Positions of the operations from which some Shape, Size or CastLike takes what it looks at."""
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
    requested: Sequence[str],
) -> tuple[Step, ...]:
    """Adds to each operation what it frees: inputs and results after their last reader, each exactly once."""
    mortal = set(inputs).union(*(operation.outputs for operation, _ in pending)) - {""}
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
                yields=tuple(name for name in dict.fromkeys(requested) if name in operation.outputs),
                frees=frees,
            )
        )
    return tuple(reversed(steps))


def _reading(operation: Operation, arguments: Arguments) -> Callable[..., Any]:
    """The function itself, or one that first reads the required host values that depend on data."""
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
