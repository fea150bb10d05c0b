"""Where activation functions saturate, against a search by hand; and what counts as a function behind a value."""

import math
from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch

from onnxdfq.calibration.saturation import function_behind, saturation_zero_point
from onnxdfq.engine import TorchGraph

from ..graphs import build


def model(*body: str, outputs: str = "y") -> ir.Model:
    results = ", ".join(f"float[N, 4] {name}" for name in outputs.split())
    text = f"(float[N, 4] v, float[N, 4] w) => ({results}) {{ x = Add (v, w)\n" + "\n".join(body) + "}"
    return build(text)


def behind_x(*body: str, outputs: str = "y") -> TorchGraph | None:
    made = model(*body, outputs=outputs)
    return function_behind(made, made.graph[0].outputs[0])


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


@pytest.mark.parametrize(
    "body, function",
    [
        (["y = Gelu (x)"], gelu),
        (["y = Elu <alpha = 0.5> (x)"], lambda x: 0.5 * math.expm1(x)),
        (["y = HardSwish (x)"], lambda x: x * min(max(x / 6 + 0.5, 0), 1)),
        (["s = Sigmoid (x)", "y = Mul (x, s)"], lambda x: x / (1 + math.exp(-x))),
        (["s = Sigmoid (x)", "y = Mul (s, x)"], lambda x: x / (1 + math.exp(-x))),
        (["y = Tanh (x)"], math.tanh),
    ],
)
@pytest.mark.parametrize("step", [0.25, 0.0625, 0.03125])
def test_below_the_zero_point_nothing_changes_by_more_than_half_a_step(
    body: list[str], function: Callable[[float], float], step: float
) -> None:
    found = behind_x(*body)
    assert found is not None
    zero_point = saturation_zero_point(found, step, 8)

    def saturates(at: int) -> bool:
        below = [function(-step * k) for k in range(at, 1022, 2)]
        return max(abs(value - below[0]) for value in below) <= step / 2

    assert zero_point == next(at for at in range(2, 256, 2) if saturates(at))


def test_what_never_saturates_has_no_zero_point() -> None:
    for body in ("y = LeakyRelu (x)", "y = Clip (x)"):
        found = behind_x(body)
        assert found is not None
        assert saturation_zero_point(found, 0.25, 8) is None
    slow = behind_x("y = Gelu (x)")
    assert slow is not None
    assert saturation_zero_point(slow, 1 / 1024, 8) is None, "254 steps do not reach where it saturates"


@pytest.mark.parametrize(
    "body",
    [
        ["y = Softmax (x)"],  # not of one number each
        ["y = PRelu (x, v)"],
        ["y = Neg (x)"],
        ["g = Gelu (x)", "y = Add (g, x)"],
        ["s = Sigmoid (x)", "p = Mul (x, s)", "y = Add (p, s)"],  # the gate is read on its own
        ["s = Sigmoid (x)", "p = Mul (x, s)", "y = Add (p, x)"],
    ],
)
def test_what_has_no_function_behind_it(body: list[str]) -> None:
    assert behind_x(*body) is None


def test_an_output_of_the_graph_is_read_by_others() -> None:
    assert behind_x("y = Gelu (x)", outputs="y x") is None
    assert behind_x("s = Sigmoid (x)", "y = Mul (x, s)", outputs="y x") is None


def test_the_function_takes_any_number_of_values() -> None:
    found = behind_x("y = Gelu (x)")
    assert found is not None
    x = torch.linspace(-3, 3, 7)
    assert torch.allclose(found(x)[0], torch.tensor([gelu(float(value)) for value in x]), atol=1e-6)
