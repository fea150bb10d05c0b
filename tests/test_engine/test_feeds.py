"""Feeds: images for the one input, constants for the others, batch by batch."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxdfq.engine.feeds import Feeds
from onnxdfq.errors import DataError, ShapeError

Build = Callable[..., ir.Model]
PIXELS = np.arange(6 * 3 * 2 * 2, dtype=np.float32).reshape(6, 3, 2, 2)


def two_inputs(build: Build, batch: str = "N", image: str = "float") -> ir.Model:
    return build(
        f"(int64[1] k, {image}[{batch},3,2,2] x) => ({image}[{batch},3,2,2] y, int64[1] l) "
        "{ y = Relu (x) l = Identity (k) }"
    )


def test_images_and_constants_in_the_order_asked_for(build: Build) -> None:
    feeds = Feeds(two_inputs(build, image="float16"))
    assert (feeds.names, feeds.image_name, feeds.batch, feeds.image_shape) == (("k", "x"), "x", None, (3, 2, 2))
    image, constant = feeds.of(["x", "k"], torch.from_numpy(PIXELS))
    assert image.dtype is torch.float16
    torch.testing.assert_close(image.float(), torch.from_numpy(PIXELS))
    assert constant.tolist() == [1]


@pytest.mark.parametrize(("batch", "sizes"), [("N", [5, 1]), ("4", [4]), ("3", [3, 3])])
def test_batches(build: Build, batch: str, sizes: list[int]) -> None:
    feeds = Feeds(two_inputs(build, batch))
    found = [images for _, images in feeds.batches(feeds.names, PIXELS, 5)]
    assert [len(images) for images in found] == sizes
    np.testing.assert_array_equal(torch.cat(found).numpy(), PIXELS[: sum(sizes)])


def test_images_that_do_not_fit(build: Build) -> None:
    feeds = Feeds(two_inputs(build, "8"))
    with pytest.raises(DataError, match="takes 8 images at a time and only 6"):
        next(feeds.batches(feeds.names, PIXELS, 5))
    for pixels in (PIXELS[0], PIXELS[:, :2]):
        with pytest.raises(DataError, match=r"the input 'x' takes \(N, 3, 2, 2\)"):
            next(feeds.batches(feeds.names, pixels, 5))


def test_an_input_that_is_no_image_is_fed_but_has_no_image_shape(build: Build) -> None:
    feeds = Feeds(build("(float[N,3] x) => (float[N,3] y) { y = Relu (x) }"))
    assert [batch[0].shape[0] for batch in feeds.batches(["x"], PIXELS[:, :, 0, 0], 4)] == [4, 2]
    with pytest.raises(ShapeError, match="of rank 2"):
        _ = feeds.image_shape
    with pytest.raises(ShapeError, match="is not known"):
        _ = Feeds(build("(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu (x) }")).image_shape
