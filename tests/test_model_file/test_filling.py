"""What inputs are fed where nobody gives data: read from text, chosen by what reads them, drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.errors import InputError
from onnxdfq.model_file import Filling, InputSpec, fillings, given_by_user, load_model, parse_fillings
from onnxdfq.model_file.filling import set_fillings

from ..graphs import build

IMAGE = Filling(kind="image")


def spec(*shape: int | None, dtype: str = "FLOAT", **settings: Any) -> InputSpec:
    return InputSpec(name="x", shape=shape, dtype=ir.DataType[dtype], **settings)


@pytest.mark.parametrize(
    ("text", "kind", "numbers", "again"),
    [
        ("image", "image", (), "image"),
        (" normal:0:1 ", "normal", (0.0, 1.0), "normal:0:1"),
        ("normal:-1.5:0", "normal", (-1.5, 0.0), "normal:-1.5:0"),
        ("uniform:0:255", "uniform", (0.0, 255.0), "uniform:0:255"),
        ("uniform:3:3", "uniform", (3.0, 3.0), "uniform:3:3"),
        ("7", "constant", (7.0,), "7"),
        ("-1e-3", "constant", (-0.001,), "-0.001"),
        ("constant:2", "constant", (2.0,), "2"),
        ("1234567", "constant", (1234567.0,), "1234567"),
        ("uniform:0:30521.5", "uniform", (0.0, 30521.5), "uniform:0:30521.5"),
        ("0.1234567891", "constant", (0.1234567891,), "0.1234567891"),
    ],
)
def test_read_and_written(text: str, kind: str, numbers: tuple[float, ...], again: str) -> None:
    found = Filling.parse(text, "x")
    assert (found.kind, found.numbers, str(found)) == (kind, numbers, again)
    assert Filling.parse(again, "x") == found


@pytest.mark.parametrize(
    "text",
    ["", "images", "image:1", "normal", "normal:0", "normal:0:1:2", "uniform:a:b", "1:2", "nan", "uniform:0:inf"],
)
def test_texts_that_say_nothing(text: str) -> None:
    with pytest.raises(
        InputError, match=rf"--input x={text} is not image, normal:MEAN:STD, uniform:LOW:HIGH, or a num"
    ):
        Filling.parse(text, "x")


@pytest.mark.parametrize("text", ["uniform:1:0", "normal:0:-1"])
def test_ranges_that_hold_nothing(text: str) -> None:
    with pytest.raises(InputError, match="the range is empty"):
        Filling.parse(text, "x")


def test_texts_by_input() -> None:
    assert parse_fillings(["x=normal:0:1", " a=b =3"]) == {"x": "normal:0:1", "a=b": "3"}
    for text in ("3", "=3"):
        with pytest.raises(InputError, match="is not NAME=WHAT"):
            parse_fillings([text])


@pytest.mark.parametrize(
    ("found", "entry", "low", "high"),
    [
        (Filling(kind="uniform", numbers=(2.0, 4.0)), spec(None, 3, dtype="INT64"), 2, 4),
        (Filling(kind="uniform", numbers=(0.0, 1.0)), spec(None, 3, dtype="BOOL"), 0, 1),
        (Filling(kind="uniform", numbers=(0.0, 255.0)), spec(None, 3, dtype="UINT8"), 0, 255),
        (Filling(kind="uniform", numbers=(-0.5, 0.5)), spec(None, 3), -0.5, 0.5),
        (Filling(kind="normal", numbers=(5.0, 0.0)), spec(None, 3), 5, 5),
        (Filling(kind="constant", numbers=(7.0,)), spec(None, 3, dtype="INT32"), 7, 7),
        (Filling(kind="constant", numbers=(300.0,)), spec(None, 3, dtype="UINT8"), 255, 255),  # what the type holds
        (Filling(kind="normal", numbers=(128.0, 500.0)), spec(None, 3, dtype="UINT8"), 0, 255),
        (IMAGE, spec(None, 8, 8, 3, dtype="UINT8", image="last"), 0, 255),
    ],
)
def test_drawn_in_the_range_and_type_of_the_input(found: Filling, entry: InputSpec, low: float, high: float) -> None:
    drawn = found.draw(entry, 400, seed=1)
    assert drawn.shape == (400, *entry.sample_shape) and drawn.dtype == entry.dtype.numpy()
    tolerance = 0.02 if entry.is_float else 0
    assert float(drawn.min()) == pytest.approx(low, abs=tolerance)
    assert float(drawn.max()) == pytest.approx(high, abs=tolerance)
    np.testing.assert_array_equal(found.draw(entry, 400, seed=1), drawn)
    assert low == high or not np.array_equal(found.draw(entry, 400, seed=2), drawn)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-3.0, 0.25)])
def test_normal_noise_by_its_moments(mean: float, deviation: float) -> None:
    drawn = Filling(kind="normal", numbers=(mean, deviation)).draw(spec(None, 100), 100, 0)
    assert drawn.mean() == pytest.approx(mean, abs=0.05 * deviation)
    assert drawn.std() == pytest.approx(deviation, rel=0.05)


def test_whole_numbers_lie_around_the_mean() -> None:
    drawn = Filling(kind="normal", numbers=(0.75, 0.0)).draw(spec(None, 2, dtype="INT64"), 3, 0)
    np.testing.assert_array_equal(drawn, np.ones((3, 2)))


def test_one_draw_serves_all_samples_of_an_input_without_a_batch() -> None:
    drawn = Filling(kind="normal", numbers=(0.0, 1.0)).draw(spec(5, batch_axis=None), 4, 0)
    assert drawn.shape == (4, 5) and drawn.strides[0] == 0
    assert len(np.unique(drawn)) == 5


def test_inputs_of_other_names_draw_other_numbers() -> None:
    one, other = (InputSpec(name=name, shape=(None, 9), dtype=ir.DataType.FLOAT) for name in ("x", "y"))
    found = Filling(kind="normal", numbers=(0.0, 1.0))
    assert not np.array_equal(found.draw(one, 2, 0), found.draw(other, 2, 0))


def test_strings_are_empty() -> None:
    assert Filling(kind="constant", numbers=(1.0,)).draw(spec(None, 2, dtype="STRING"), 3, 0).tolist() == [["", ""]] * 3


TABLE = np.zeros((30, 4), np.float32)
DEFAULTS = [
    ("(float[N,3,8,8] x) => (float[N,3,8,8] y) { y = Relu(x) }", {}, "images"),
    ("(float[N,5] x) => (float[N,5] y) { y = Relu(x) }", {}, "noise of mean 0 and deviation 1"),
    (
        "(int64[N,16] x) => (float[N,16,4] y) { y = Gather(c, x) }",
        {"c": TABLE},
        "uniform noise from 0 to 29 (Gather reads a table of 30 rows)",
    ),
    (
        "(int64[N,16] x) => (float[N,16,4] y) { z = Cast<to=6>(x) w = Gather<axis=1>(c, z) y = Transpose(w) }",
        {"c": TABLE.T.copy()},
        "uniform noise from 0 to 29 (Gather reads a table of 30 rows)",
    ),
    (  # padding is told apart from words, and words are what it is made for
        """(int64[N,16] x) => (float[N,16,4] y, bool[N,16] padding) {
            padding = Equal(x, pad)
            y = Gather(c, x)
        }""",
        {"c": TABLE, "pad": np.array(0)},
        "uniform noise from 0 to 29 (Gather reads a table of 30 rows)",
    ),
    (  # a mask that hides nothing
        "(int64[N,16] x) => (bool[N,16] y) { y = Equal(x, zero) }",
        {"zero": np.array(0)},
        "1 everywhere",
    ),
    (
        "(float x) => (bool y) { y = Greater(x, half) }",
        {"half": np.array(0.5, np.float32)},
        "0.5 everywhere (Greater compares it with that)",
    ),
    (
        "(int64[1] x) => (bool[1] y) { z = Squeeze(x) y = Less(three, x) }",
        {"three": np.array([3])},
        "3 everywhere (Less compares it with that)",
    ),
    ("(float x, float[N,5] z) => (float[N,5] y) { y = Mul(z, x) }", {}, "1 everywhere"),
    ("(float[1] x, float[N,5] z) => (float[N,5] y) { y = Div(z, x) }", {}, "1 everywhere"),
    ("(float x, float[N,5] z) => (float[N,5] y) { y = Add(z, x) }", {}, "0 everywhere"),
    ("(bool x) => (bool y) { y = Not(x) }", {}, "0 everywhere"),
    ("(bool[N,5] x) => (bool[N,5] y) { y = Not(x) }", {}, "1 everywhere"),
    ("(int64[2] x, float[N,6] z) => (float[a,b] y) { y = Reshape(z, x) }", {}, "1 everywhere"),
    ("(uint8[N,8,8,3] x) => (float[N,8,8,3] y) { y = Cast<to=1>(x) }", {}, "images"),
]


@pytest.mark.parametrize(("text", "weights", "sentence"), DEFAULTS)
def test_what_suits_an_input(text: str, weights: dict[str, Any], sentence: str) -> None:
    assert fillings(build(text, **weights))["x"].sentence == sentence


def test_a_table_of_too_few_axes_says_nothing() -> None:
    model = build("(int64[N,16] x) => (float[N,16,4] y) { y = Gather(c, x) }", c=TABLE)
    model.graph.initializers["c"].const_value = ir.tensor(np.float32(1), name="c")
    assert fillings(model)["x"].sentence == "1 everywhere"


def test_what_the_user_says_goes_first() -> None:
    model = build("(float[N,5] x, float[N,5] z) => (float[N,5] y) { y = Add(x, z) }")
    assert not given_by_user(model)
    set_fillings(model, {"z": "uniform:0:1"})
    assert given_by_user(model) == {"z"}
    found = fillings(model)
    assert found["z"].sentence == "uniform noise from 0 to 1 (as --input says)"
    assert found["x"].sentence == "noise of mean 0 and deviation 1"


def test_an_input_that_the_model_lacks() -> None:
    model = build("(float[N,5] x) => (float[N,5] y) { y = Add(x, c) }", c=np.ones(5, np.float32))
    for name in ("c", "y", ""):
        with pytest.raises(InputError, match=f"names '{name}', and the model has no such input; it has 'x'"):
            set_fillings(model, {name: "1"})


def test_what_the_user_says_outlives_the_simplification(tmp_path: Path) -> None:
    source = build("(float[N,5] x, float[N,5] z) => (float[N,5] y) { h = Add(x, z) y = Identity(h) }")
    ir.save(source, tmp_path / "model.onnx")
    model = load_model(tmp_path / "model.onnx", fed={"z": "uniform:0:1", "x": "3"})
    assert [node.op_type for node in model.graph] == ["Add"]
    assert {name: str(found) for name, found in fillings(model).items()} == {"x": "3", "z": "uniform:0:1"}
