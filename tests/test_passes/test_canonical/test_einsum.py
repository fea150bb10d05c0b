"""Einsum that is a product of matrices becomes MatMul, and any other stays."""

from collections import Counter

import numpy as np
import pytest

from passes.canonical.canonicalize import Canonicalize

from .conftest import rand

SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 6, "f": 7}


def einsum(build, equation: str, *, first: str, second: str, output: str, constant: bool = False):
    """The operands' and the output's axes, by letters; N is the batch of the first."""
    shapes = [", ".join(str(SIZES[axis]) for axis in term) for term in (first, second, output)]
    inputs = f"float[{shapes[0]}] x" + ("" if constant else f", float[{shapes[1]}] z")
    weights = {"z": rand(*(SIZES[axis] for axis in second))} if constant else {}
    return build(f'({inputs}) => (float[{shapes[2]}] y) {{ y = Einsum<equation="{equation}">(x, z) }}', **weights)


@pytest.mark.parametrize(
    ("equation", "first", "second", "output", "transposes"),
    [
        ("abcd,abde->abce", "abcd", "abde", "abce", 0),
        ("a b c d, a b e d -> a b c e", "abcd", "abed", "abce", 1),  # attention of torchvision's MaxVit
        ("abc,adc->abd", "abc", "adc", "abd", 1),
        ("bac,dac->abd", "bac", "dac", "abd", 2),
        ("abc,acd->adb", "abc", "acd", "adb", 1),
        ("ab,bc->ac", "ab", "bc", "ac", 0),
        ("ab,bc", "ab", "bc", "ac", 0),  # the output follows from the operands
        ("abc,cd->abd", "abc", "cd", "abd", 0),
        ("cd,abc->abd", "cd", "abc", "abd", 0),  # the one with several axes goes left
        ("cd,abc->dab", "cd", "abc", "dab", 1),
        ("...cd,...de->...ce", "abcd", "abde", "abce", 0),
        ("...cd,de->...ce", "abcd", "de", "abce", 0),
    ],
)
def test_a_product_of_matrices(build, assert_same, operators, equation, first, second, output, transposes):
    model = einsum(build, equation, first=first, second=second, output=output)
    assert_same(model, Canonicalize())
    found = operators(model)
    assert found == Counter(MatMul=1, Transpose=transposes) - Counter()


def test_a_weight_is_turned_once_and_for_all(build, assert_same, operators):
    model = einsum(build, "abc,dc->abd", first="abc", second="dc", output="abd", constant=True)
    assert_same(model, Canonicalize())
    assert operators(model) == {"MatMul": 1}


@pytest.mark.parametrize(
    ("equation", "first", "second", "output"),
    [
        ("ab,ab->ab", "ab", "ab", "ab"),  # element by element
        ("a,b->ab", "a", "b", "ab"),  # an outer product
        ("abc,abd->cd", "abc", "abd", "cd"),  # over two axes
        ("abcd,ade->abce", "abcd", "ade", "abce"),  # two rows of axes beside one that is shared
        ("abc,c->ab", "abc", "c", "ab"),  # with a vector
        ("abd,dc->ac", "abd", "dc", "ac"),  # and a sum of one operand
    ],
)
def test_what_is_no_product_of_matrices_stays(build, operators, equation, first, second, output):
    model = einsum(build, equation, first=first, second=second, output=output)
    Canonicalize()(model)
    assert operators(model) == {"Einsum": 1}


def test_one_operand_or_three_stay(build, operators):
    model = build(
        "(float[2,3] x, float[3,4] z, float[4,5] w) => (float[3,2] y, float[2,5] v) {"
        ' y = Einsum<equation="ab->ba">(x) v = Einsum<equation="ab,bc,cd->ad">(x, z, w) }'
    )
    Canonicalize()(model)
    assert operators(model) == {"Einsum": 2}


def test_axes_that_nobody_knows_stay(build, operators):
    text = """(float[2,3] x, int64[k] s) => (float[a,b] y) {
        z = Reshape(x, s) y = Einsum<equation="...c,cd->...d">(z, w)
    }"""
    model = build(text, w=np.eye(3, dtype="f4"))
    Canonicalize()(model)
    assert operators(model)["Einsum"] == 1
