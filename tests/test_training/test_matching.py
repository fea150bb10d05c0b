"""What of a student stands against what of its teacher, and what does not fit."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.errors import DfqError
from onnxdfq.training.matching import match

from ..graphs import build

RANDOM = np.random.default_rng(0)
TEXT = """(float[{batch},3,{side},{side}] {image}) => (float[{batch},{classes}] y) {{
    a = Conv <pads = [1,1,1,1], strides = [2,2]> ({image}, w)  r = Relu (a)
    g = GlobalAveragePool (r)  f = Flatten (g)  y = Gemm (f, v)
}}"""


def network(
    *, batch: str | int = "N", side: int = 8, classes: int = 5, width: int = 4, image: str = "image", tail: str = "y"
) -> ir.Model:
    text = TEXT.format(batch=batch, side=side, classes=classes, image=image)
    if tail == "softmax":
        text = text.replace("y = Gemm (f, v)", "z = Gemm (f, v) y = Softmax <axis = 1> (z)")
    weights = {"w": RANDOM.normal(size=(width, 3, 3, 3)), "v": RANDOM.normal(size=(width, classes))}
    return build(text, **{name: array.astype("f4") for name, array in weights.items()})


def test_what_is_compared() -> None:
    found = match(network(), network(image="x"))
    assert found.inputs == ("x",) and found.classes == (True,)
    assert found.outputs == found.student_outputs == ("y",)
    assert found.taps == found.student_taps == ("r",)
    assert match(network(), network(width=2)).taps == ()
    assert match(network(), network(), features=False).taps == ()


def test_softmax_on_one_side() -> None:
    found = match(network(tail="softmax"), network())
    assert (found.outputs, found.student_outputs, found.classes) == (("z",), ("y",), (True,))


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        (lambda: network(side=10), "input 'image' takes float N,3,8,8 and the student's 'image' float N,3,10,10"),
        (lambda: network(classes=4), "output 'y' is N×5 and the student's 'y' N×4"),
        (lambda: network(batch=2), "any number of samples and the student 2 at a time"),
        (
            lambda: build("(float[N,3,8,8] a, float[N,3,8,8] b) => (float[N,3,8,8] y) { y = Add (a, b) }"),
            "The teacher has 1 input and the student 2",
        ),
        (
            lambda: build("(float[N,3,8,8] a) => (float[N,3,8,8] y, float[N,3,8,8] z) { y = Relu (a) z = Neg (a) }"),
            "The teacher has 1 output and the student 2",
        ),
    ],
)
def test_what_does_not_fit_is_a_sentence(student: object, sentence: str) -> None:
    with pytest.raises(DfqError) as raised:
        match(network(), student())  # type: ignore[operator]
    assert sentence in str(raised.value)


def test_several_inputs_go_by_their_names() -> None:
    text = "(float[N,3,8,8] {0}, float[N,3] {1}) => (float[N,3,8,8] y) {{ g = Identity ({1}) y = Relu ({0}) }}"
    swapped = "(float[N,3] b, float[N,3,8,8] a) => (float[N,3,8,8] y) { g = Identity (b) y = Relu (a) }"
    assert match(build(text.format("a", "b")), build(swapped)).inputs == ("a", "b")
    with pytest.raises(DfqError, match="no input 'b', as the teacher has"):
        match(build(text.format("a", "b")), build(text.format("a", "c")))
