"""Sources of images: the same images at every call, and streams that use them all."""

import numpy as np
import pytest

from onnxdfq.errors import DataError
from onnxdfq.images import Images
from onnxdfq.images.source import FixedImages


def numbered(count: int) -> Images:
    pixels = np.arange(count, dtype=np.float32).reshape(count, 1, 1, 1)
    return Images(pixels=pixels, method="file", seed=0)


def test_images_are_made_once_and_stay_the_same() -> None:
    made: list[int] = []

    def make(count: int) -> Images:
        made.append(count)
        return numbered(count)

    source = FixedImages(make)
    assert len(source.fixed(8)) == 8 and len(source.fixed(3)) == 3 and made == [8]
    np.testing.assert_array_equal(source.fixed(3).pixels, source.fixed(8).pixels[:3])
    assert len(source.fixed(9)) == 9 and made == [8, 9]


def test_fewer_images_than_asked_for_are_not_made_again() -> None:
    made: list[int] = []

    def make(count: int) -> Images:
        made.append(count)
        return numbered(min(count, 5))

    source = FixedImages(make)
    assert [len(source.fixed(count)) for count in (8, 8, 3)] == [5, 5, 3] and made == [8]


def test_a_stream_takes_each_image_once_before_any_comes_again() -> None:
    source = FixedImages(numbered)
    with pytest.raises(DataError, match="take 4 images"):
        next(source.batches(4, seed=0))
    source.fixed(10)
    stream = source.batches(4, seed=1)
    drawn = [float(value) for _ in range(5) for value in next(stream).flatten()]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    again = source.batches(4, seed=1)
    assert [float(value) for value in next(again).flatten()] == drawn[:4]
