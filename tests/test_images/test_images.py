"""Images: saved, loaded, refused."""

from pathlib import Path

import numpy as np
import pytest

from onnxdfq.errors import DataError
from onnxdfq.images import Images


def test_saved_images_load_to_the_same_bytes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).standard_normal((3, 1, 4, 5)).astype(np.float32)
    images = Images(pixels=pixels, method="dgh", seed=7, provenance={"settings": '{"steps": 3}', "name": "Größe"})
    path = tmp_path / "images.any"
    images.save(path)
    back = Images.load(path)
    assert back.pixels.tobytes() == pixels.tobytes()
    assert (back.method, back.seed, back.provenance) == ("dgh", 7, images.provenance)
    assert len(back) == 3
    with np.load(path, allow_pickle=False) as file:
        assert file["images"].dtype == np.float32  # the name and the type that `evaluate` takes as it is


def test_loading_refuses_pickle_and_other_files(tmp_path: Path) -> None:
    pickled, text, other = tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "c.npz"
    np.savez(pickled, images=np.array([{}], dtype=object), method="x", seed=0, provenance="{}")
    text.write_text("not a zip")
    np.savez(other, images=np.zeros((1, 1, 2, 2), np.float32))
    for path in (pickled, text, other, tmp_path / "absent.npz"):
        with pytest.raises(DataError, match=path.name):
            Images.load(path)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((), np.float32),
        np.array(["a", "b"]),
        np.zeros((0, 3, 4, 4), np.float32),
        np.full((1, 1, 2, 2), np.nan, np.float32),
    ],
)
def test_what_is_no_set_of_images_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(DataError):
        Images(pixels=pixels, method="dgh", seed=0)
