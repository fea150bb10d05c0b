"""Fingerprints of plans: every number counts, the order of the tables does not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from passes.quantize.plan import QuantPlan, TensorQuant


def quant(threshold: float = 1.0, **settings: Any) -> TensorQuant:
    return TensorQuant(bits=8, signed=False, threshold=np.asarray(threshold), **settings)


PLAN = QuantPlan(
    activations={"x": quant(), "y": quant(2.0, clip=(0, 192))},
    weights={"w": TensorQuant(bits=4, signed=True, axis=0, threshold=np.array([1.0, 2.0]))},
    constants={"c": quant()},
    same_as={"p": "x"},
    biases={"conv": np.array([1.0, 2.0], np.float32)},
    bias_quants={"conv": TensorQuant(bits=8, signed=True, threshold=np.asarray(4.0))},
    shifts={"x": 0.5},
    integers={"w": np.array([1, 2], np.int8)},
)


def test_equal_numbers_have_one_fingerprint() -> None:
    again = replace(
        PLAN,
        activations={"y": quant(2.0, clip=(np.int64(0), np.int64(192))), "x": quant()},
        biases={"conv": PLAN.biases["conv"].copy()},
        shifts={"x": np.float64(0.5)},
    )
    assert again.fingerprint == PLAN.fingerprint
    assert again.activation_fingerprint == PLAN.activation_fingerprint
    assert len(PLAN.fingerprint) == 64 and int(PLAN.fingerprint, 16)


@pytest.mark.parametrize(
    "change",
    [
        {"activations": {"x": quant(), "y": quant(2.0)}},
        {"activations": {"x": quant(), "y": quant(4.0, clip=(0, 192))}},
        {"activations": {"x": quant(zero_point=2), "y": quant(2.0, clip=(0, 192))}},
        {"activations": {"x": quant(), "z": quant(2.0, clip=(0, 192))}},
        {"weights": {"w": replace(PLAN.weights["w"], axis=1)}},
        {"weights": {"w": replace(PLAN.weights["w"], threshold=np.array([1.0, 4.0]))}},
        {"weights": {"w": replace(PLAN.weights["w"], bits=3)}},
        {"constants": {}},
        {"constants": {"c": TensorQuant(bits=8, signed=True, threshold=np.asarray(1.0))}},
        {"same_as": {"p": "y"}},
        {"biases": {"conv": np.array([1.0, 2.5], np.float32)}},
        {"bias_quants": {}},
        {"shifts": {"x": 0.25}},
        {"integers": {"w": np.array([1, 3], np.int8)}},
    ],
)
def test_every_number_counts(change: dict[str, Any]) -> None:
    other = replace(PLAN, **change)
    assert other.fingerprint != PLAN.fingerprint
    assert (other.activation_fingerprint != PLAN.activation_fingerprint) == ("activations" in change)
