"""The engine against ONNX's own node cases: every case of every operator that it claims, but those listed here."""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.backend.test.case.test_case import TestCase as Case
from onnx.backend.test.loader import load_model_tests
from torch import Tensor

from onnxdfq.engine import SUPPORTED_OPERATORS, TorchGraph
from onnxdfq.engine.dtypes import to_numpy, to_torch
from onnxdfq.engine.host import host_inputs
from onnxdfq.engine.operation import DATA_DEPENDENT
from onnxdfq.engine.ops import OPERATORS

from ..slow import all_but

SKIPPED = {
    "test_cast_*FLOAT8*": "float8",
    "test_castlike_*FLOAT8*": "float8",
    "test_cast_*FLOAT4*": "float4",
    "test_castlike_*FLOAT4*": "float4",
    "test_dequantizelinear_e[45]m*": "float8",
    "test_dequantizelinear_float4e2m1": "float4",
    "test_quantizelinear_e[45]m*": "float8",
    "test_quantizelinear_float4e2m1": "float4",
    "test_equal_string*": "strings",
    "test_identity_opt": "optional type",
    "test_identity_sequence": "sequence type",
    "test_training_dropout": "random: numpy's generator decides which elements are dropped",
    "test_training_dropout_mask": "random: numpy's generator decides which elements are dropped",
    "test_training_dropout_default": "random: numpy's generator decides which elements are dropped",
    "test_training_dropout_default_mask": "random: numpy's generator decides which elements are dropped",
}

BFLOAT16_TOLERANCE = 2**-6
"""Two units in the last place: what ONNX's own runner grants to bfloat16 results, whatever the case declares."""

TOLERANCES = {
    # The function body in float16, which numpy rounds after every step of its softmax: two units in the last place.
    "test_attention_4d_causal_fp16_expanded": 2**-9,
}


def _operator(case: Case, cases: dict[str, Case]) -> str | None:
    """The one operator that a case is about; None where it is of a foreign domain or holds an operator not claimed."""
    if any(node.domain or node.op_type not in SUPPORTED_OPERATORS for node in case.model.graph.node):
        return None
    plain = cases.get(case.name.split("_expanded")[0], case)
    return str(plain.model.graph.node[0].op_type)


def _skipped(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in SKIPPED)


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, while ONNX computes the expected values
        return {case.name: case for case in load_model_tests(kind="node")}


@pytest.fixture(scope="module")
def by_operator(cases: dict[str, Case]) -> dict[str, list[Case]]:
    grouped = defaultdict(list)
    for case in cases.values():
        operator = _operator(case, cases)
        if operator is not None and not _skipped(case.name):
            grouped[operator].append(case)
    return grouped


def _tensor(value: Any) -> Tensor:
    if isinstance(value, onnx.TensorProto):
        return to_torch(ir.serde.deserialize_tensor(value))
    return to_torch(ir.tensor(np.asarray(value)))


def _data(case: Case) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    for inputs, outputs in case.data_sets:
        yield [_tensor(value) for value in inputs if value is not None], [_tensor(value) for value in outputs]


def _check(case: Case, got: tuple[Tensor, ...], expected: list[Tensor]) -> None:
    assert len(got) == len(expected)
    for actual, wanted in zip(got, expected, strict=True):
        assert actual.dtype is wanted.dtype
        assert actual.shape == wanted.shape
        rtol = BFLOAT16_TOLERANCE if wanted.dtype is torch.bfloat16 else TOLERANCES.get(case.name, case.rtol)
        np.testing.assert_allclose(
            actual.detach().double().numpy(), wanted.double().numpy(), rtol=max(rtol, case.rtol), atol=case.atol
        )


def _failures(cases: list[Case], run: Any) -> list[str]:
    failures = []
    for case in cases:
        try:
            run(case)
        except (AssertionError, ArithmeticError, RuntimeError, TypeError, ValueError, LookupError) as error:
            failures.append(f"{case.name}: {type(error).__name__}: {error}")
    return failures


def test_claims_enough() -> None:
    assert len(SUPPORTED_OPERATORS) >= 110
    assert all(function.__name__ == name for name, function in OPERATORS.items())


def test_every_operator_that_has_cases_runs_one(cases: dict[str, Case], by_operator: dict[str, list[Case]]) -> None:
    have = {node.op_type for case in cases.values() if "_expanded" not in case.name for node in case.model.graph.node}
    assert sorted(operator for operator in SUPPORTED_OPERATORS & have if not by_operator[operator]) == []
    without = SUPPORTED_OPERATORS - have
    assert without == {"GlobalLpPool"}  # covered in test_operators.py
    assert sum(map(len, by_operator.values())) >= 1450


def test_no_skip_is_stale(cases: dict[str, Case]) -> None:
    claimed = [name for name, case in cases.items() if _operator(case, cases) is not None]
    stale = [pattern for pattern in SKIPPED if not any(fnmatchcase(name, pattern) for name in claimed)]
    assert stale == []


@pytest.mark.parametrize("operator", sorted(SUPPORTED_OPERATORS))
def test_values(operator: str, by_operator: dict[str, list[Case]]) -> None:
    """All inputs as they come, host values read at run time."""

    def run(case: Case) -> None:
        for inputs, expected in _data(case):
            _check(case, TorchGraph(ir.serde.deserialize_model(case.model))(*inputs), expected)

    assert _failures(by_operator[operator], run) == []


@pytest.mark.parametrize("operator", all_but(sorted(SUPPORTED_OPERATORS), sorted(SUPPORTED_OPERATORS)[::3]))
def test_values_and_shapes_when_planned(operator: str, by_operator: dict[str, list[Case]]) -> None:
    """Integers and host values as initializers, which the plan reads; it also foretells the shape of every output."""

    def run(case: Case) -> None:
        for inputs, expected in _data(case):
            model = ir.serde.deserialize_model(case.model)
            fed = _freeze_inputs(model, inputs)
            outputs = [str(value.name) for value in model.graph.outputs]
            shapes = [f"shape of {name}" for name in outputs]
            for value, name in zip(list(model.graph.outputs), shapes, strict=True):
                node = ir.Node("", "Shape", [value])
                node.outputs[0].name = name
                model.graph.append(node)
            engine = TorchGraph(model, outputs=[*outputs, *shapes])
            got = engine(*fed)
            _check(case, got[: len(outputs)], expected)
            foreseeable = not any(node.op_type in DATA_DEPENDENT for node in model.graph)
            for name, shape, value in zip(shapes, got[len(outputs) :], expected, strict=True):
                assert shape.tolist() == list(value.shape)
                (plan,) = engine._plans.values()
                assert (name in plan.constants) == foreseeable, "the plan does not know the shape"

    assert _failures(by_operator[operator], run) == []


def _freeze_inputs(model: ir.Model, inputs: list[Tensor]) -> list[Tensor]:
    """Makes initializers of inputs that are integers or that an operator reads as numbers; returns the other ones."""
    fed = []
    for value, tensor in zip(list(model.graph.inputs), inputs, strict=True):
        numbers = any(position in host_inputs(OPERATORS[user.op_type]) for user, position in value.uses())
        if tensor.is_floating_point() and not numbers:
            fed.append(tensor)
            continue
        assert value.dtype is not None
        array = to_numpy(tensor).astype(value.dtype.numpy())
        value.const_value = ir.Tensor(array, dtype=value.dtype, name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return fed
