"""Sizes that a file leaves open: they follow from one another, from weights, and from data at hand."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.errors import DataError, ShapeError
from onnxdfq.images.dataset import shapes_of_data
from onnxdfq.model_file import inputs
from onnxdfq.model_file.sizes import fix_input_shapes

from ..graphs import build

Shapes = list[tuple[int | None, ...]]


def shapes_of(model: ir.Model, given: Any = None, data: Any = None) -> Shapes:
    fix_input_shapes(model, given, data)
    return [spec.shape for spec in inputs(model)]


TWO = "(float[N,c,L] x, float[N,c,L] z) => (float[N,c,L] y) { y = Add(x, z) }"


@pytest.mark.parametrize("given", [{"x": (1, 3, 5)}, {"": (7, 3, 5)}, {"z": (1, 3, 5)}])
def test_a_symbol_that_is_known_is_known_everywhere(given: Any) -> None:
    assert shapes_of(build(TWO), given) == [(None, 3, 5), (None, 3, 5)]


def test_a_symbol_is_known_from_data_too() -> None:
    assert shapes_of(build(TWO), {}, {"z": (20, 3, 5)}) == [(None, 3, 5), (None, 3, 5)]


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


WEIGHTS = [
    ("(float[N,c,8,8] x) => (float[N,6,h,w] y) { y = Conv(x, w) }", {"w": f32(6, 3, 3, 3)}, (None, 3, 8, 8)),
    ("(float[N,c,8] x) => (float[N,6,h] y) { y = Conv<group=2>(x, w) }", {"w": f32(6, 2, 3)}, (None, 4, 8)),
    ("(float[N,c,8,8] x) => (float[N,6,h,w] y) { y = ConvTranspose(x, w) }", {"w": f32(5, 6, 3, 3)}, (None, 5, 8, 8)),
    ("(float[N,7,c] x) => (float[N,7,6] y) { y = MatMul(x, w) }", {"w": f32(4, 6)}, (None, 7, 4)),
    ("(float[N,c] x) => (float[N,6] y) { y = Gemm(x, w) }", {"w": f32(4, 6)}, (None, 4)),
    ("(float[N,c] x) => (float[N,6] y) { y = Gemm<transB=1>(x, w) }", {"w": f32(6, 4)}, (None, 4)),
    (
        "(float[5,N,c] x) => (float[5,1,N,2] y) { y = LSTM<hidden_size=2>(x, w, r) }",
        {"w": f32(1, 8, 6), "r": f32(1, 8, 2)},
        (5, None, 6),
    ),
    (
        "(float[N,c,8] x) => (float[N,c,8] y) { y = BatchNormalization(x, w, w, w, w) }",
        {"w": f32(3)},
        (None, 3, 8),
    ),
]


@pytest.mark.parametrize(("text", "weights", "shape"), WEIGHTS)
def test_a_size_that_a_weight_sets(text: str, weights: dict[str, Any], shape: tuple[int | None, ...]) -> None:
    assert shapes_of(build(text, **weights)) == [shape]


@pytest.mark.parametrize(("text", "weights"), [case[:2] for case in WEIGHTS])
def test_a_weight_of_too_few_axes_sets_nothing(text: str, weights: dict[str, Any]) -> None:
    model = build(text, **weights)
    for name, weight in model.graph.initializers.items():
        weight.const_value = ir.tensor(f32(), name=name)
    with pytest.raises(ShapeError, match="Input 'x' has unknown sizes"):
        shapes_of(model)


def test_a_size_that_a_weight_sets_is_known_everywhere() -> None:
    model = build(
        "(float[N,c] x, float[N,c] z) => (float[N,6] y) { h = Gemm(z, w) s = ReduceSum(x) y = Add(h, s) }",
        w=f32(4, 6),
    )
    assert shapes_of(model) == [(None, 4), (None, 4)]


def test_a_weight_that_another_input_is_multiplied_with_sets_nothing() -> None:
    model = build("(float[N,c] x) => (float[3,N] y) { y = Gemm<transB=1>(w, x) }", w=f32(3, 4))
    with pytest.raises(ShapeError, match="Input 'x' has unknown sizes: N×c"):
        shapes_of(model)


CHANNELS_FIRST = "(float[N,c,h,w] x) => (float[N,c,h,w] y) { y = Relu(x) }"
CHANNELS_LAST = "(float[N,h,w,3] x) => (float[N,h,w,3] y) { y = Relu(x) }"
STATE = "(float[5,N,k] x, float[2] scale) => (float[5,N,k] y) { s = ReduceSum(scale) y = Mul(x, s) }"


@pytest.mark.parametrize(
    ("text", "data", "shapes"),
    [
        (CHANNELS_FIRST, {"images": (10, 3, 8, 6)}, [(None, 3, 8, 6)]),
        (CHANNELS_FIRST, {"images": (10, 8, 6, 3)}, [(None, 3, 8, 6)]),
        (CHANNELS_FIRST, {"images": (10, 8, 6)}, [(None, 1, 8, 6)]),
        (CHANNELS_FIRST, {"x": (10, 3, 8, 6)}, [(None, 3, 8, 6)]),
        (CHANNELS_FIRST, {"x": (4, 10, 3, 8, 6)}, [(None, 3, 8, 6)]),  # one entry per run
        (
            "(float[N,h,w,1] x) => (float[N,h,w,1] y) { y = Relu(x) }",
            {"images": (10, 8, 6)},
            [(None, 8, 6, 1)],
        ),
        (CHANNELS_LAST, {"images": (10, 8, 6, 3)}, [(None, 8, 6, 3)]),
        (STATE, {"x": (5, 20, 4)}, [(5, None, 4), (2,)]),
        (STATE, {"x": (9, 5, 20, 4), "scale": (9, 2)}, [(5, None, 4), (2,)]),
    ],
)
def test_sizes_of_data_at_hand(text: str, data: dict[str, tuple[int, ...]], shapes: Shapes) -> None:
    assert shapes_of(build(text), {}, data) == shapes


def test_what_the_user_says_goes_before_the_data() -> None:
    data = {"images": (10, 3, 8, 6)}
    assert shapes_of(build(CHANNELS_FIRST), {"": (1, 3, 16, 16)}, data) == [(None, 3, 16, 16)]


def test_a_shape_that_is_missing_altogether_follows_from_the_data() -> None:
    model = build(CHANNELS_FIRST)
    model.graph.inputs[0].shape = None
    assert shapes_of(model, {}, {"x": (10, 3, 8, 6)}) == [(None, 3, 8, 6)]


def test_shapes_of_arrays(tmp_path: Any) -> None:
    images = np.zeros((4, 8, 6, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images, z=f32(4, 2))
    np.savez(tmp_path / "saved.npz", **{"images": images, "input:z": f32(4, 2)})
    np.save(tmp_path / "data.npy", images)
    for source in (tmp_path / "data.npz", tmp_path / "saved.npz", {"images": images, "z": f32(4, 2).tolist()}):
        assert shapes_of_data(source) == {"images": (4, 8, 6, 3), "z": (4, 2)}
    for source in (tmp_path / "data.npy", images):
        assert shapes_of_data(source) == {"images": (4, 8, 6, 3)}
    (tmp_path / "photo.png").write_bytes(b"")
    for source in (tmp_path, tmp_path / "photo.png", iter([images])):
        assert shapes_of_data(source) == {}
    with pytest.raises(DataError, match="there is no such file or folder"):
        shapes_of_data(tmp_path / "nothing.npz")


def test_sizes_that_are_suggested_run() -> None:
    """224 and 64 do not fit the weight of the last layer, 128 does."""
    model = build(
        "(float[N,3,h,w] x) => (float[N,2] y) { p = MaxPool<kernel_shape=[32,32], strides=[32,32]>(x) f = Flatten(p) "
        "y = MatMul(f, w) }",
        w=f32(48, 2),
    )
    with pytest.raises(ShapeError, match=r"unknown sizes: N×3×h×w; give them with --input-shape x=1,3,128,128\."):
        fix_input_shapes(model, None)


def test_nothing_is_promised_where_no_guess_runs() -> None:
    model = build(
        "(float[N,3,h,w] x) => (float[N,2] y) { f = Flatten(x) y = MatMul(f, w) }",
        w=f32(3 * 17, 2),
    )
    with pytest.raises(ShapeError, match=r"give those that it was made for with --input-shape x=\.\.\., as in x=1,3,2"):
        fix_input_shapes(model, None)


def test_a_suggestion_for_two_inputs_is_one_at_which_both_run() -> None:
    model = build(
        "(float[N,L] x, float[N,L] z) => (float[N,2] y) { s = Add(x, z) y = MatMul(s, w) }",
        w=f32(128, 2),
    )
    with pytest.raises(ShapeError, match=r"'x' has unknown sizes: N×L; give them with --input-shape x=1,128\."):
        fix_input_shapes(model, None)
