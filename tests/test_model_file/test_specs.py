"""What an input is, by its shape and its name: where the batch lies, whether it takes images, how planes fit it."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.errors import ShapeError
from onnxdfq.model_file import InputSpec, batch_of, inputs, main_input

FLOAT, UINT8, INT64 = ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.INT64


def model(**shapes: Any) -> ir.Model:
    """No nodes, and inputs of these shapes: floats, or what a pair (shape, type) says."""
    values = []
    for name, given in shapes.items():
        shape, dtype = given if len(given) == 2 and isinstance(given[1], ir.DataType) else (given, FLOAT)
        values.append(ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype)))
    return ir.Model(ir.Graph(values, [], nodes=[], opset_imports={"": 21}), ir_version=10)


def spec(*shape: int | None, **settings: Any) -> InputSpec:
    return InputSpec(name="x", shape=shape, dtype=FLOAT, **settings)


@pytest.mark.parametrize(
    ("shapes", "axes", "batch"),
    [
        ({"x": ("N", 3, 8, 8)}, [0], None),
        ({"x": (None, 3, 8, 8)}, [0], None),
        ({"x": ("N", 3, 8, 8), "size": ((1,), INT64), "flag": ()}, [0, None, None], None),
        ({"x": ("N", 5), "y": (5, "N")}, [0, 1], None),
        ({"x": ("N", 5), "table": (7, "width")}, [0, None], None),
        ({"x": (16, "batch", 8)}, [1], None),
        ({"x": (1, "Batch_Size", 8)}, [1], None),
        ({"x": ("length", "batch", 8)}, [1], None),
        ({"x": ("length", "batch", 8), "state": (1, "batch", 4), "mask": ("length",)}, [1, 1, None], None),
        ({"x": (None, "batch", 8), "y": (None, 8)}, [1, 0], None),
        ({"x": ("batch", "length"), "y": ("length", "batch")}, [0, 1], None),
        ({"x": (5, "N", 6), "h": (1, "N", 4), "c": (1, "N", 4)}, [1, 1, 1], None),
        ({"x": (5, "M", 6), "h": (1, "M", 4)}, [1, 1], None),  # nobody calls it a batch
        ({"x": (1, "length", 6)}, [0], 1),  # a leading 1 is the batch, what is open behind it the length
        ({"x": (5, "M", "K")}, [0], 5),  # which of two open sizes is the batch, nothing tells
        ({"x": (1, 3, 8, 8), "size": (1, 2), "table": (7, 2), "count": (1,)}, [0, 0, None, None], 1),
        ({"x": (4, 3, 8, 8), "y": (4, 2), "table": (7, 2)}, [0, 0, None], 4),
        ({"x": (4,), "flag": ()}, [None, None], 1),
    ],
)
def test_where_the_batch_lies(shapes: dict[str, Any], axes: list[int | None], batch: int | None) -> None:
    found = model(**shapes)
    assert [entry.batch_axis for entry in inputs(found)] == axes
    assert batch_of(found) == batch


@pytest.mark.parametrize(
    ("shapes", "images"),
    [
        ({"x": ("N", 3, 8, 8)}, ["first"]),
        ({"x": ("N", 8, 8, 3)}, ["last"]),
        ({"x": ("N", 76, 32, 1)}, ["last"]),
        ({"x": ("N", 16, 4, 5)}, ["first"]),  # whatever it is, it is the only float input
        ({"x": (1, 3, 3, 3)}, ["first"]),
        ({"x": ("N", "c", "h", "w")}, ["first"]),
        ({"x": ("N", "h", "w", 3)}, ["last"]),
        ({"x": ("N", 3, "h", "w"), "size": ("N", 2)}, ["first", None]),
        ({"x": (1, 1, 64), "state": (1, 2, 8, 2)}, [None, None]),
        ({"x": ("N", 3, 8, 8), "small": ("N", 3, 7, 8)}, ["first", None]),
        ({"x": (("N", 8, 8, 3), UINT8)}, ["last"]),
        ({"x": (("N", 3, 8, 8), UINT8)}, ["first"]),
        ({"x": (("N", 3, 7, 7), UINT8)}, [None]),  # bytes of another meaning
        ({"x": (("N", 3, 8, 8), INT64)}, [None]),
        ({"x": (2, "batch", 8, 8)}, [None]),
        ({"x": ("N", 8)}, [None]),
    ],
)
def test_which_inputs_take_images(shapes: dict[str, Any], images: list[str | None]) -> None:
    assert [entry.image for entry in inputs(model(**shapes))] == images


@pytest.mark.parametrize(
    ("shapes", "main"),
    [
        ({"tokens": (("N", 16), INT64), "x": ("N", 5)}, "x"),
        ({"scale": (), "tokens": (("N", 16), INT64)}, "tokens"),
        ({"scale": ()}, "scale"),
        ({"x": ("N", 5), "photo": (("N", 8, 8, 3), UINT8)}, "photo"),
    ],
)
def test_samples_are_counted_by_the_richest_input(shapes: dict[str, Any], main: str) -> None:
    assert main_input(model(**shapes)).name == main


def test_a_model_without_inputs_has_no_main_one() -> None:
    with pytest.raises(ShapeError, match="has no input"):
        main_input(model())


@pytest.mark.parametrize(
    ("found", "planes"),
    [
        (spec(None), (1, 1, 1)),
        (spec(batch_axis=None), (1, 1, 1)),
        (spec(None, 5), (5, 1, 1)),
        (spec(None, 5, 7), (5, 1, 7)),
        (spec(6, None, 7, batch_axis=1), (6, 1, 7)),
        (spec(None, 3, 4, 6, image="first"), (3, 4, 6)),
        (spec(None, 4, 6, 3, image="last"), (3, 4, 6)),
        (spec(None, 3, 2, 4, 6), (3, 8, 6)),  # two frames below one another
    ],
)
def test_samples_as_planes_and_back(found: InputSpec, planes: tuple[int, int, int]) -> None:
    assert found.planes == planes
    given = np.arange(2 * np.prod(planes), dtype=np.float32).reshape(2, *planes)
    samples = found.from_planes(given)
    assert samples.shape == (2, *found.sample_shape) and np.shares_memory(samples, given)
    if found.image == "last":
        np.testing.assert_array_equal(samples[1, 3, 5], given[1, :, 3, 5])
    else:
        np.testing.assert_array_equal(samples.reshape(-1), given.reshape(-1))


def test_no_planes_where_a_size_is_not_known() -> None:
    with pytest.raises(ShapeError, match=r"'x' is not known: give --input-shape x=1,3,\?,6"):
        _ = spec(None, 3, None, 6).planes


def test_samples_take_the_batch_axis_of_the_model() -> None:
    samples = np.arange(12).reshape(2, 3, 2)
    np.testing.assert_array_equal(spec(3, None, 2, batch_axis=1).joined(samples)[:, 1], samples[1])
    np.testing.assert_array_equal(spec(3, 2, batch_axis=None).joined(samples), samples[0])
    assert spec(3, None, 2, batch_axis=1).with_batch(4) == (3, 4, 2)
    assert spec(1, 3, None).text() == "N,3,?"
