"""Arrays of all layouts as samples, several inputs at once, and what a model is fed for one run."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.errors import DataError
from onnxdfq.images import Images
from onnxdfq.images.dataset import Dataset, load_data, load_dataset
from onnxdfq.images.feeding import Feeding
from onnxdfq.images.normalization import Normalization
from onnxdfq.images.samples import Samples, as_samples
from onnxdfq.model_file import InputSpec

from ..graphs import build

NONE = Normalization.parse("none")


def spec(*shape: int | None, dtype: str = "FLOAT", name: str = "x", **settings: Any) -> InputSpec:
    return InputSpec(name=name, shape=shape, dtype=ir.DataType[dtype], **settings)


def counted(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """0, 1, 2, ... so that every number tells its place."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


# --- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "shape", "samples", "second"),
    [
        (spec(None, 3), (4, 3), (4, 3), [3, 4, 5]),
        (spec(1, 3), (4, 3), (4, 3), [3, 4, 5]),  # a batch that is fixed: many runs
        (spec(None, 3), (2, 4, 3), (8, 3), [3, 4, 5]),  # two runs of four
        (spec(2, None, 3, batch_axis=1), (2, 4, 3), (4, 2, 3), [3, 4, 5, 15, 16, 17]),
        (spec(2, None, 3, batch_axis=1), (5, 2, 1, 3), (5, 2, 3), [6, 7, 8, 9, 10, 11]),  # five runs of one
        (spec(2, None, 3, batch_axis=1), (5, 2, 4, 3), (20, 2, 3), [3, 4, 5, 15, 16, 17]),  # five runs of four
        (spec(2, 3, batch_axis=None), (2, 3), (1, 2, 3), None),  # one that serves all
        (spec(2, 3, batch_axis=None), (4, 2, 3), (4, 2, 3), [6, 7, 8, 9, 10, 11]),  # one for each run
        (spec(2, 3, batch_axis=None), (8, 3), (4, 2, 3), [6, 7, 8, 9, 10, 11]),  # runs one behind another
        (spec(batch_axis=None), (), (1,), None),
        (spec(batch_axis=None), (4,), (4,), [1]),
        (spec(1, batch_axis=None), (4,), (4, 1), [1]),
    ],
)
def test_layouts(entry: InputSpec, shape: tuple[int, ...], samples: tuple[int, ...], second: list[int] | None) -> None:
    found = as_samples(counted(*shape), entry, "the data")
    assert found.shape == samples
    if second is not None:
        np.testing.assert_array_equal(found[1].reshape(-1), second)


@pytest.mark.parametrize(
    ("entry", "shape", "message"),
    [
        (spec(None, 3), (4, 2), r"the array 'x' is \(4, 2\), and the input takes \(N, 3\)"),
        (spec(None, 3), (3,), r"is \(3\), and the input takes \(N, 3\)"),
        (spec(None, 3), (1, 1, 4, 3), r"takes \(N, 3\)"),
        (spec(2, None, 3, batch_axis=1), (4, 2, 3), r"takes \(2, N, 3\)"),
        (spec(2, 3, batch_axis=None), (3, 3), r"is \(3, 3\), and the input takes \(2, 3\)"),
        (spec(batch_axis=None), (4, 1), r"takes \(\)"),
        (spec(None), (), r"the array 'x' is \(\), and the input takes \(N\)"),
    ],
)
def test_layouts_that_do_not_fit(entry: InputSpec, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(DataError, match=f"^the data: .*{message}"):
        as_samples(counted(*shape), entry, "the data")


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (np.float64, "FLOAT"),
        (np.int64, "FLOAT"),
        (np.float16, "FLOAT"),
        (np.int32, "INT64"),
        (np.int64, "UINT8"),
        (np.bool_, "BOOL"),
    ],
)
def test_types_that_are_converted(given: Any, taken: str) -> None:
    array = np.array([[0, 1]], given)
    found = as_samples(array, spec(None, 2, dtype=taken), "the data")
    assert found.dtype == ir.DataType[taken].numpy()
    np.testing.assert_array_equal(found.astype(float), array.astype(float))


@pytest.mark.parametrize(
    ("array", "taken", "message"),
    [
        (np.zeros((1, 2)), "INT64", "is float64; the input takes int64"),
        (np.zeros((1, 2), np.int64), "BOOL", "is int64; the input takes bool"),
        (np.zeros((1, 2), bool), "FLOAT", "is bool; the input takes float"),
        (np.zeros((1, 2), complex), "FLOAT", "is complex128; the input takes float"),
        (np.array([["a", "b"]]), "FLOAT", "the input takes float"),
        (np.array([[0, 256]]), "UINT8", "holds numbers from 0 to 256; the input takes uint8"),
        (np.array([[-1, 5]]), "UINT8", "holds numbers from -1 to 5; the input takes uint8"),
        (np.array([[0, np.nan]]), "FLOAT", "holds NaN or infinity"),
        (np.array([[0, -np.inf]]), "FLOAT16", "holds NaN or infinity"),
    ],
)
def test_numbers_that_do_not_fit(array: np.ndarray, taken: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_samples(array, spec(None, 2, dtype=taken), "the data")


# --- several inputs ---------------------------------------------------------------------------------------------------

MAIN = spec(None, 3, 4, 6, image="first")
TOKENS = spec(None, 5, name="tokens", dtype="INT64")
SCALE = spec(name="scale", batch_axis=None)


def given(count: int = 4) -> dict[str, np.ndarray]:
    return {
        "x": counted(count, 3, 4, 6),
        "tokens": counted(count, 5, dtype=np.int64),
        "scale": np.array(2, np.float32),
        "labels": counted(count, dtype=np.int64),
    }


@pytest.mark.parametrize("where", ["mapping", "file"])
@pytest.mark.parametrize("name", ["x", "images", "input:x"])
def test_arrays_by_their_names(tmp_path: Path, where: str, name: str) -> None:
    arrays = given()
    arrays[name] = arrays.pop("x")
    source: Any = arrays
    if where == "file":
        source = tmp_path / "data.npz"
        np.savez(source, **arrays)
    data = load_data(source, spec=MAIN, others=[TOKENS, SCALE], classes=4)
    assert data.labels is not None and data.labels.tolist() == [0, 1, 2, 3]
    assert set(data.others) == {"tokens", "scale"}
    first, second = data.samples(3)
    assert (len(first), len(second)) == (3, 1)
    np.testing.assert_array_equal(second.main[0], counted(4, 3, 4, 6)[3])
    np.testing.assert_array_equal(second.others["tokens"], [[15, 16, 17, 18, 19]])
    np.testing.assert_array_equal(second.others["scale"], [2])


def test_inputs_that_nobody_gives_are_left_to_others() -> None:
    data = load_data({"x": counted(4, 3, 4, 6)}, spec=MAIN, others=[TOKENS, SCALE])
    assert data.others == {} and data.labels is None


def test_an_input_that_is_called_labels() -> None:
    labels = spec(None, 2, name="labels")
    data = load_data({"x": counted(4, 3, 4, 6), "labels": counted(4, 2)}, spec=MAIN, others=[labels])
    assert data.labels is None and data.others["labels"].shape == (4, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": counted(3, 5, dtype=np.int64)}, "holds 4 samples of the input 'x' and 3 of 'tokens'; as many are"),
        ({"scale": counted(3)}, "and 3 of 'scale'"),
        ({"tokens": counted(4, 6, dtype=np.int64)}, r"'tokens' is \(4, 6\), and the input takes \(N, 5\)"),
        ({"x": None}, r"has no array 'images', and no 'x'; an array for each input is read: 'x', 'tokens', 'scale'"),
        ({"labels": counted(3, dtype=np.int64)}, "labels have shape 3 and there are 4 images"),
    ],
)
def test_arrays_that_do_not_fit_one_another(changes: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in (given() | changes).items() if array is not None}
    with pytest.raises(DataError, match=message):
        load_data(arrays, spec=MAIN, others=[TOKENS, SCALE])


def test_one_array_without_a_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", counted(4, 5))
    np.save(tmp_path / "data.npy", counted(4, 5))
    for name in ("data.npz", "data.npy"):
        np.testing.assert_array_equal(load_dataset(tmp_path / name, spec=spec(None, 5)).images, counted(4, 5))
    with pytest.raises(DataError, match="has no array 'images'"):
        load_dataset(tmp_path / "data.npz", spec=spec(None, 5), others=[TOKENS])


# --- bytes ------------------------------------------------------------------------------------------------------------

BYTES_FIRST = spec(None, 3, 4, 6, dtype="UINT8", image="first")
BYTES_LAST = spec(None, 4, 6, 3, dtype="UINT8", image="last")


@pytest.mark.parametrize(
    ("entry", "shape", "turned"),
    [
        (BYTES_FIRST, (2, 3, 4, 6), False),
        (BYTES_FIRST, (2, 4, 6, 3), True),
        (BYTES_LAST, (2, 4, 6, 3), False),
    ],
)
def test_a_model_that_takes_bytes(entry: InputSpec, shape: tuple[int, ...], turned: bool) -> None:
    images = counted(*shape, dtype=np.uint8)
    data = load_data(images, spec=entry)
    (batch,) = data.batches(2)
    assert batch.dtype == np.uint8 and data.normalization is None
    np.testing.assert_array_equal(batch, images.transpose(0, 3, 1, 2) if turned else images)


@pytest.mark.parametrize(
    ("entry", "array"),
    [
        (BYTES_LAST, counted(2, 3, 4, 6, dtype=np.uint8)),
        (BYTES_FIRST, counted(2, 3, 5, 6, dtype=np.uint8)),
        (BYTES_FIRST, counted(2, 3, 4, 6)),
    ],
)
def test_what_does_not_fit_a_model_that_takes_bytes(entry: InputSpec, array: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"do not fit|the input takes uint8"):
        load_data(array, spec=entry)


@pytest.mark.parametrize(
    ("entry", "shape"), [(BYTES_FIRST, (1, 3, 4, 6)), (BYTES_LAST, (1, 4, 6, 3)), (MAIN, (1, 3, 4, 6))]
)
def test_photographs(tmp_path: Path, entry: InputSpec, shape: tuple[int, ...]) -> None:
    """A folder of them, or one."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is optional and not here")
    image.new("RGB", (6, 4), (255, 51, 0)).save(tmp_path / "b.png")
    image.new("RGB", (12, 8), (0, 0, 0)).save(tmp_path / "c.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "more").mkdir()
    assert len(load_dataset(tmp_path, spec=entry, normalization=NONE)) == 2
    data = load_dataset(tmp_path / "b.png", spec=entry, normalization=NONE)
    assert data.labels is None and data.class_names == ()
    (batch,) = data.batches(8)
    assert batch.shape == shape
    scale = 1 if entry.is_bytes else 255
    colours = batch[0, 2, 3] if entry.image == "last" else batch[0, :, 2, 3]
    np.testing.assert_allclose(colours * scale, [255, 51, 0], atol=1e-4)


def test_photographs_for_an_input_that_takes_none(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is optional and not here")
    image.new("RGB", (6, 4)).save(tmp_path / "b.png")
    for entry in (spec(None, 5), spec(None, 4, 4, 6, image="first")):
        with pytest.raises(DataError, match="images in folders are grey or RGB"):
            load_dataset(tmp_path, spec=entry, normalization=NONE)


# --- one run ----------------------------------------------------------------------------------------------------------

SEVERAL = """(float[2,N,3] x, int64[N,5] tokens, float scale, float[2,4] table) => (float[2,N,3] y) {
    t = Cast<to=1>(tokens)
    s = ReduceSum(t)
    r = ReduceSum(table)
    a = Add(x, s)
    b = Add(a, r)
    y = Mul(b, scale)
}"""


def test_arrays_of_one_run_are_laid_out_as_the_model_has_them() -> None:
    feeding = Feeding(build(SEVERAL))
    assert (feeding.main.name, [entry.name for entry in feeding.others]) == ("x", ["tokens", "scale", "table"])
    assert feeding.batch is None
    x, scale = counted(4, 2, 3, dtype=np.float64), np.broadcast_to(np.float32(3), 4)
    arrays = feeding.arrays(Samples(main=x, others={"scale": scale}))
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
        "x": ((2, 4, 3), "float32"),
        "tokens": ((4, 5), "int64"),
        "scale": ((), "float32"),
        "table": ((2, 4), "float32"),
    }
    np.testing.assert_array_equal(arrays["x"][1, 2], x[2, 1])
    assert arrays["scale"] == 3 and arrays["x"].flags.c_contiguous
    assert (arrays["tokens"] == 1).all()
    np.testing.assert_array_equal(arrays["table"], feeding.arrays(x[:2])["table"])


@pytest.mark.parametrize(
    ("others", "size"),
    [
        ({}, 64),
        ({"tokens": counted(4, 5, dtype=np.int64)}, 64),
        ({"scale": np.broadcast_to(np.float32(3), 4)}, 64),  # the same for all
        ({"scale": counted(4)}, 1),
        ({"table": counted(4, 2, 4)}, 1),
    ],
)
def test_samples_that_differ_in_an_input_without_a_batch_run_one_by_one(
    others: dict[str, np.ndarray], size: int
) -> None:
    assert Feeding(build(SEVERAL)).run_size(Samples(main=counted(4, 2, 3), others=others), 64) == size


def test_a_fixed_batch_is_the_size_of_a_run() -> None:
    feeding = Feeding(build("(float[3,5] x) => (float[3,5] y) { y = Relu(x) }"))
    assert feeding.run_size(counted(9, 5), 64) == 3
    feeding.check(counted(3, 5))
    with pytest.raises(DataError, match="takes 3 samples at a time and only 2 are there"):
        feeding.check(counted(2, 5))


@pytest.mark.parametrize(
    ("main", "others"),
    [((4, 2, 4), {}), ((4, 2), {}), ((4, 2, 3, 1), {}), ((4, 2, 3), {"tokens": counted(4, 6)})],
)
def test_samples_of_other_shapes(main: tuple[int, ...], others: dict[str, np.ndarray]) -> None:
    with pytest.raises(DataError, match=r"The samples are \(4, .*and the input '(x|tokens)' takes \(N, "):
        Feeding(build(SEVERAL)).check(Samples(main=counted(*main), others=others))


def test_slices_and_sizes_of_samples() -> None:
    found = Samples(main=counted(4, 3, 2), others={"z": counted(4, 5)})
    assert (len(found), found.numbers) == (4, 11)
    part = found[1:3]
    assert len(part) == 2 and part.others["z"][0].tolist() == [5, 6, 7, 8, 9]
    assert Samples.of(found) is found and len(Samples.of(counted(6, 2))) == 6


# --- files of samples -------------------------------------------------------------------------------------------------


def test_samples_of_several_inputs_are_saved_and_loaded(tmp_path: Path) -> None:
    others = {"tokens": counted(4, 5, dtype=np.int64), "scale": np.broadcast_to(np.float32(3), 4)}
    images = Images(pixels=counted(4, 3, 4, 6), method="noise", seed=1, others=others)
    images.save(tmp_path / "samples.npz")
    back = Images.load(tmp_path / "samples.npz")
    assert set(back.others) == {"tokens", "scale"}
    for name, array in others.items():
        np.testing.assert_array_equal(back.others[name], array)
        assert back.others[name].dtype == array.dtype
    data = load_dataset(tmp_path / "samples.npz", spec=MAIN, others=[TOKENS, SCALE])
    assert isinstance(data, Dataset) and set(data.others) == {"tokens", "scale"}
    assert [len(array) for array in images.first(3).others.values()] == [3, 3]
    assert images.first(9) is images


def test_samples_of_inputs_that_do_not_match() -> None:
    with pytest.raises(DataError, match="Each input needs an array of as many samples"):
        Images(pixels=counted(4, 3), method="file", seed=0, others={"z": counted(3, 5)})
    with pytest.raises(DataError, match="NaN"):
        Images(pixels=counted(4, 3), method="file", seed=0, others={"z": np.full((4, 5), np.nan)})
