"""Shapes in annotations bite in tests, and cost nothing elsewhere."""

import subprocess
import sys

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import Float64
from numpy.typing import NDArray

from passes.graph.affine import ChannelAffine
from passes.moments.spread import Spread

from .array_checks import checked
from .graphs import REPOSITORY


def test_a_wrong_shape_raises() -> None:
    three, two = np.zeros(3), np.zeros(2)
    with pytest.raises(BeartypeCallHintParamViolation, match="dimension"):
        ChannelAffine(scale=three, shift=two)
    with pytest.raises(BeartypeCallHintParamViolation, match="float32"):
        ChannelAffine(scale=three, shift=three.astype(np.float32))
    with pytest.raises(BeartypeCallHintParamViolation, match="dimension"):
        Spread.normal(three, np.ones(1), origin="")
    assert Spread.normal(three, three, origin="").mean.shape == (3,)


def test_a_wrong_result_raises() -> None:
    def halves(x: Float64[NDArray[np.float64], "c"], how: str = "wrong") -> Float64[NDArray[np.float64], "c"]:  # noqa: F821
        return x[: len(x) // 2]

    with pytest.raises(BeartypeCallHintReturnViolation):
        checked(halves)(np.zeros(4))


def test_functions_without_arrays_stay_as_they_are() -> None:
    def count(x: float) -> int:
        return int(x)

    assert checked(count) is count


def test_at_run_time_nothing_is_checked() -> None:
    code = """
import sys
import numpy as np
from passes.moments.spread import Spread
wrong = Spread.normal(np.zeros(3), np.ones(1), origin="")
print(len(wrong.points), "beartype" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert run.stdout.split() == ["3", "False"]
