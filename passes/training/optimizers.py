"""Optimizers as nodes: their state goes in and comes out."""

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from passes.training.tape import Tape

Optimizer: TypeAlias = Literal["adam", "sgd"]
Inputs: TypeAlias = Callable[[str, NDArray[np.float32]], ir.Value]
"""(key, start) → the input of the state that has this key."""

Weights: TypeAlias = Mapping[str, tuple[ir.Value, ir.Value]]
"""Key of the state → parameter and gradient."""

BETA, BETA_OF_SQUARES, EPSILON = 0.9, 0.999, 1e-8  # arXiv 1412.6980
MOMENTUM = 0.9
STEP = "step"


def update(tape: Tape, optimizer: Optimizer, weights: Weights, rate: ir.Value, enter: Inputs) -> Mapping[str, ir.Value]:
    """One step. Gives, by the key of the state, what comes next.

    Args:
        tape: Of the graph; gains nodes.
        optimizer: "adam" (arXiv 1412.6980) or "sgd", with momentum; both without weight decay.
        weights: What trains.
        rate: (), the learning rate.
        enter: Makes inputs of the state.
    """
    make = _adam if optimizer == "adam" else _sgd
    return make(tape, weights, rate, enter)


def _sgd(tape: Tape, weights: Weights, rate: ir.Value, enter: Inputs) -> Mapping[str, ir.Value]:
    """v ← μ v + g, p ← p - rate v."""
    found = {}
    for key, (weight, gradient) in weights.items():
        old = enter(f"momentum:{key}", _zeros(weight))
        velocity = tape.op("Add", tape.op("Mul", old, tape.constant(MOMENTUM)), gradient)
        found[f"momentum:{key}"] = velocity
        found[key] = tape.op("Sub", weight, tape.op("Mul", rate, velocity))
    return found


def _adam(tape: Tape, weights: Weights, rate: ir.Value, enter: Inputs) -> Mapping[str, ir.Value]:
    """p ← p - rate m̂ / (√v̂ + ε), with m̂ = m / (1 - β₁ᵗ) and v̂ = v / (1 - β₂ᵗ)."""
    one = tape.constant(1.0)
    count = tape.op("Add", enter(STEP, np.zeros((), np.float32)), one)

    def unbiased(beta: float) -> ir.Value:
        return tape.op("Sub", one, tape.op("Pow", tape.constant(beta), count))

    def mean(key: str, number: ir.Value, beta: float, start: NDArray[np.float32]) -> ir.Value:
        old = tape.op("Mul", enter(key, start), tape.constant(beta))
        found[key] = tape.op("Add", old, tape.op("Mul", number, tape.constant(1 - beta)))
        return found[key]

    found: dict[str, ir.Value] = {STEP: count}
    corrections = unbiased(BETA), unbiased(BETA_OF_SQUARES)
    for key, (weight, gradient) in weights.items():
        zeros = _zeros(weight)
        first = mean(f"mean:{key}", gradient, BETA, zeros)
        second = mean(f"square:{key}", tape.op("Mul", gradient, gradient), BETA_OF_SQUARES, zeros)
        deviation = tape.op("Add", tape.op("Sqrt", tape.op("Div", second, corrections[1])), tape.constant(EPSILON))
        move = tape.op("Div", tape.op("Div", first, corrections[0]), deviation)
        found[key] = tape.op("Sub", weight, tape.op("Mul", rate, move))
    return found


def _zeros(weight: ir.Value) -> NDArray[np.float32]:
    assert weight.shape is not None
    return np.zeros(weight.shape.numpy(), np.float32)
