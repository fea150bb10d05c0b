"""Images in: normalised by hand-computed values, refused in one sentence where they do not fit."""

import builtins
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.errors import DataError
from onnxdfq.images.dataset import load_dataset
from onnxdfq.images.normalization import Normalization
from onnxdfq.model_file import InputSpec

Image = pytest.importorskip("PIL.Image", reason="Pillow is optional and not here")

NONE = Normalization.parse("none")


def spec(*shape: int | None) -> InputSpec:
    image = "last" if shape[-1] in (1, 3) and shape[0] not in (1, 3) else "first"
    return InputSpec(name="image", shape=(None, *shape), dtype=ir.DataType.FLOAT, image=image)


def saved(folder: Path, **arrays: Any) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def pixels(*shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


# --- normalization --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mean", "std"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("none", (0.0,), (1.0,)),
        ("ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("0.5,0.25,0.125/0.5,1,2", (0.5, 0.25, 0.125), (0.5, 1.0, 2.0)),
        ("0/0.00392156862745098", (0.0,), (1 / 255,)),
        ("0.5/0.1,0.2,0.3", (0.5,), (0.1, 0.2, 0.3)),
    ],
)
def test_parse_and_print(text: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    found = Normalization.parse(text)
    assert (found.mean, found.std) == (mean, std)
    assert Normalization.parse(str(found)) == found


@pytest.mark.parametrize(("text", "printed"), [("imagenet", "imagenet"), ("0/1", "none"), ("0.5/0.25", "0.5/0.25")])
def test_presets_print_as_their_names(text: str, printed: str) -> None:
    assert str(Normalization.parse(text)) == printed


@pytest.mark.parametrize(
    "text",
    ["imgnet", "", "0.5", "1,2/", "a/b", "0/0", "0/-1", "nan/1", "0/inf", "0,0,0/1,1", "1e300/1", "0/1e-40", "0/1e300"],
)
def test_what_is_no_normalization(text: str) -> None:
    with pytest.raises(DataError, match="normaliz"):
        Normalization.parse(text)


def test_values_by_hand() -> None:
    images = np.array([[[[0, 51, 255]]]], np.uint8)  # (1, 1, 1, 3): 0, 0.2, 1 of the unit range
    found = Normalization(mean=(0.5, 0.2, 0.0), std=(0.5, 1.0, 0.25))(images)
    assert found.shape == (1, 3, 1, 1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.reshape(-1), [-1, 0, 4], atol=1e-6)


def test_raw_bytes_stay_what_they_are() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    found = Normalization.parse("0,0,0/0.00392156862745098,0.00392156862745098,0.00392156862745098")(
        np.repeat(images, 3, axis=3)
    )
    np.testing.assert_allclose(found[0, 2].reshape(-1), np.arange(256), rtol=1e-6)


# --- .npz -----------------------------------------------------------------------------------------------------------


def test_bytes_are_normalised_batch_by_batch(tmp_path: Path) -> None:
    images, labels = pixels(5, 4, 6, 3), np.array([0, 1, 2, 1, 0])
    data = load_dataset(
        saved(tmp_path, images=images, labels=labels), spec=spec(3, 4, 6), normalization=Normalization.parse("cifar10")
    )
    batches = list(data.batches(2))
    assert [batch.shape for batch in batches] == [(2, 3, 4, 6), (2, 3, 4, 6), (1, 3, 4, 6)]
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
    expected = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(np.concatenate(batches), expected, atol=1e-6)
    assert all(batch.dtype == np.float32 and batch.flags.c_contiguous for batch in batches)
    assert len(data) == 5
    assert data.labels is not None
    np.testing.assert_array_equal(data.labels, labels)


def test_floats_are_taken_as_they_are(tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((3, 3, 4, 6)).astype(np.float32)
    data = load_dataset(
        saved(tmp_path, images=images), spec=spec(3, 4, 6), normalization=Normalization.parse("cifar10")
    )
    np.testing.assert_array_equal(np.concatenate(list(data.batches(2))), images)
    assert data.labels is None


@pytest.mark.parametrize("shape", [(4, 6, 5), (4, 6, 5, 1)])
def test_grey_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = pixels(*shape)
    data = load_dataset(saved(tmp_path, images=images), spec=spec(1, 6, 5), normalization=NONE)
    np.testing.assert_allclose(next(data.batches(9))[:, 0], images.reshape(4, 6, 5) / 255, atol=1e-6)


def test_a_model_with_channels_last(tmp_path: Path) -> None:
    images = pixels(2, 4, 6, 3)
    data = load_dataset(saved(tmp_path, images=images), spec=spec(4, 6, 3), normalization=NONE)
    np.testing.assert_allclose(next(data.batches(2)), images / 255, atol=1e-6)


def test_images_stay_bytes_in_memory(tmp_path: Path) -> None:
    path = saved(tmp_path, images=pixels(4000, 32, 32, 3))  # 12 MB as bytes, 49 MB as floats
    tracemalloc.start()
    data = load_dataset(path, spec=spec(3, 32, 32), normalization=NONE)
    assert sum(len(batch) for batch in data.batches(64)) == 4000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pixels": pixels(2, 4, 6, 3)}, r"has no array 'images' \(it holds 'pixels'\)"),
        ({"images": np.array([pixels(4, 6, 3), None], dtype=object)}, "would need pickle"),
        ({"images": pixels(2, 4, 6, 3), "labels": np.array([1, None], dtype=object)}, "would need pickle"),
        ({"images": pixels(2, 4, 6, 3).astype(np.float64)}, r"images float64 2×4×6×3 do not fit input 'image'"),
        ({"images": pixels(2, 4, 6, 3).astype(np.int64)}, r"images are int64"),
        ({"images": pixels(2, 4)}, r"images are uint8 2×4"),
        ({"images": pixels(2, 3, 4, 6)}, r"images uint8 2×3×4×6 \(N, H, W, C\) do not fit input 'image' N×3×4×6"),
        ({"images": pixels(2, 8, 6, 3)}, r"do not fit input 'image' N×3×4×6"),
        ({"images": pixels(2, 4, 6, 1)}, r"do not fit input 'image' N×3×4×6"),
        ({"images": np.zeros((2, 4, 6, 3), np.float32)}, r"images float32 2×4×6×3 do not fit input 'image' N×3×4×6"),
        ({"images": np.full((2, 3, 4, 6), np.nan, np.float32)}, "holds NaN or infinity"),
        ({"images": pixels(0, 4, 6, 3)}, "holds no images"),
        ({"images": pixels(2, 4, 6, 3), "labels": np.array([0, 1, 2])}, r"labels have shape 3 and there are 2 images"),
        ({"images": pixels(2, 4, 6, 3), "labels": np.eye(2, dtype=np.int64)}, r"labels have shape 2×2"),
        ({"images": pixels(2, 4, 6, 3), "labels": np.array([0.0, 1.0])}, "labels are float64; whole numbers"),
        (
            {"images": pixels(2, 4, 6, 3), "labels": np.array([0, 10])},
            "do not fit the classes: 0 to 9, as the model has 10",
        ),
        ({"images": pixels(2, 4, 6, 3), "labels": np.array([-1, 0])}, r"run from -1 to 0, and do not fit the classes"),
    ],
)
def test_npz_files_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(saved(tmp_path, **arrays), spec=spec(3, 4, 6), normalization=NONE, classes=10)


def test_bytes_without_a_normalization(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing says how the model wants them; give --normalize imagenet"):
        load_dataset(saved(tmp_path, images=pixels(2, 4, 6, 3)), spec=spec(3, 4, 6))


def test_a_normalization_of_other_channels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"normalization imagenet has 3 channels, the images 1"):
        load_dataset(
            saved(tmp_path, images=pixels(2, 4, 6)), spec=spec(1, 4, 6), normalization=Normalization.parse("imagenet")
        )


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"PK\x03\x04 cut off", b"\x80\x04\x95\x05pickle"])
def test_files_that_are_no_npz(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.npz (cannot be read as \.npz: it is none|is empty)"):
        load_dataset(path, spec=spec(3, 4, 6), normalization=NONE)


def test_one_array_and_nothing_at_all(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", pixels(2, 4, 6, 3))
    assert len(load_dataset(tmp_path / "data.npy", spec=spec(3, 4, 6), normalization=NONE)) == 2
    with pytest.raises(DataError, match="there is no such file or folder"):
        load_dataset(tmp_path / "nothing.npz", spec=spec(3, 4, 6), normalization=NONE)


# --- folders --------------------------------------------------------------------------------------------------------


def image_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for name, value in (("dog", 200), ("cat", 100), ("eel", 50)):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (6, 4), (value, 0, 0)).save(folder / name / "1.png")
        Image.new("L", (12, 8), value).save(folder / name / "2.png")
        (folder / name / "notes.txt").write_text("no image")
    return folder


def test_class_folders(tmp_path: Path) -> None:
    data = load_dataset(image_folder(tmp_path), spec=spec(3, 4, 6), normalization=NONE, classes=3)
    assert data.class_names == ("cat", "dog", "eel")
    assert data.labels is not None
    np.testing.assert_array_equal(data.labels, [0, 0, 1, 1, 2, 2])
    first, *_, last = list(data.batches(4))
    assert (first.shape, last.shape) == ((4, 3, 4, 6), (2, 3, 4, 6))
    np.testing.assert_allclose(first[0, :, 0, 0], [100 / 255, 0, 0], atol=1e-6)
    np.testing.assert_allclose(first[3, :, 3, 5], [200 / 255] * 3, atol=1e-6)


def test_class_folders_for_a_grey_model(tmp_path: Path) -> None:
    data = load_dataset(image_folder(tmp_path), spec=spec(1, 4, 6), normalization=NONE)
    np.testing.assert_allclose(next(data.batches(2))[1], 100 / 255, atol=1e-6)


def test_more_folders_than_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels run from 0 to 2, and do not fit the classes: 0 to 1"):
        load_dataset(image_folder(tmp_path), spec=spec(3, 4, 6), normalization=NONE, classes=2)


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images; photographs, or a folder per class"):
        load_dataset(tmp_path, spec=spec(3, 4, 6), normalization=NONE)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    (folder / "dog" / "1.png").write_bytes(b"not a png")
    data = load_dataset(folder, spec=spec(3, 4, 6), normalization=NONE)
    with pytest.raises(DataError, match=r"1\.png cannot be read as an image"):
        list(data.batches(6))


def test_a_folder_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_pillow(name: str, *rest: Any) -> Any:
        if name.startswith("PIL"):
            raise ImportError(name)
        return original(name, *rest)

    folder = image_folder(tmp_path)
    monkeypatch.setattr(builtins, "__import__", without_pillow)
    with pytest.raises(DataError, match=r"needs Pillow: pip install pillow"):
        load_dataset(folder, spec=spec(3, 4, 6), normalization=NONE)
