"""PNG files, as Pillow reads them."""

import io

import numpy as np
import pytest
from PIL import Image

from onnxdfq.images.normalization import Normalization
from onnxdfq.images.png import png


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pillow_reads_the_same_bytes(channels: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    found = np.asarray(Image.open(io.BytesIO(png(picture))))
    np.testing.assert_array_equal(found.reshape(picture.shape), picture)


@pytest.mark.parametrize("text", ["imagenet", "0.45/0.25", "0/0.00392156862745098"])
def test_numbers_turn_back_into_the_bytes_that_they_were(text: str) -> None:
    normalization = Normalization.parse(text)
    picture = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(normalization.inverted(normalization(picture)), picture)
