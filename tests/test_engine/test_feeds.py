"""Feeds: images for the one input, constants for the others, batch by batch."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxdfq.engine.feeds import Feeds
from onnxdfq.errors import DataError, ShapeError
from onnxdfq.images.samples import Samples

Build = Callable[..., ir.Model]
PIXELS = np.arange(6 * 3 * 2 * 2, dtype=np.float32).reshape(6, 3, 2, 2)


def two_inputs(build: Build, batch: str = "N", image: str = "float") -> ir.Model:
    return build(
        f"(int64[1] k, {image}[{batch},3,2,2] x) => ({image}[{batch},3,2,2] y, int64[1] l) "
        "{ y = Relu (x) l = Identity (k) }"
    )


def test_what_is_given_and_what_suits_the_rest_in_the_order_asked_for(build: Build) -> None:
    feeds = Feeds(two_inputs(build))
    assert (feeds.names, feeds.main.name, feeds.batch, feeds.main.planes) == (("k", "x"), "x", None, (3, 2, 2))
    image, constant = feeds.of(["x", "k"], {"x": torch.from_numpy(PIXELS)})
    torch.testing.assert_close(image, torch.from_numpy(PIXELS))
    assert constant.tolist() == [1]


def test_a_batch_behind_the_first_axis_and_arrays_without_one(build: Build) -> None:
    feeds = Feeds(build("(float[2,N,3] state, float[4] table) => (float[2,N,3] y) { y = Relu (state) }"))
    state, table = np.arange(30, dtype=np.float32).reshape(5, 2, 3), np.arange(20, dtype=np.float32).reshape(5, 4)
    shared = Samples(main=state, others={"table": np.broadcast_to(table[:1], (5, 4))})
    found = list(feeds.batches(feeds.names, shared, 3))
    assert [tuple(batch.shape) for batch, _ in found] == [(2, 3, 3), (2, 2, 3)]
    np.testing.assert_array_equal(torch.cat([batch for batch, _ in found], 1).numpy(), state.swapaxes(0, 1))
    assert all(row.tolist() == [0, 1, 2, 3] for _, row in found)
    # where each sample has a table of its own, each runs alone
    own = list(feeds.batches(feeds.names, Samples(main=state, others={"table": table}), 3))
    assert [row.tolist() for _, row in own] == table.tolist()
    assert all(tuple(batch.shape) == (2, 1, 3) for batch, _ in own)


@pytest.mark.parametrize(("batch", "sizes"), [("N", [5, 1]), ("4", [4]), ("3", [3, 3])])
def test_batches(build: Build, batch: str, sizes: list[int]) -> None:
    feeds = Feeds(two_inputs(build, batch))
    found = [images for _, images in feeds.batches(feeds.names, PIXELS, 5)]
    assert [len(images) for images in found] == sizes
    np.testing.assert_array_equal(torch.cat(found).numpy(), PIXELS[: sum(sizes)])


def test_images_that_do_not_fit(build: Build) -> None:
    feeds = Feeds(two_inputs(build, "8"))
    with pytest.raises(DataError, match="takes 8 samples at a time and only 6"):
        next(feeds.batches(feeds.names, PIXELS, 5))
    for pixels in (PIXELS[0], PIXELS[:, :2]):
        with pytest.raises(DataError, match=r"the input 'x' takes \(N, 3, 2, 2\)"):
            next(feeds.batches(feeds.names, pixels, 5))


def test_an_input_that_is_no_image_is_fed_too(build: Build) -> None:
    feeds = Feeds(build("(float[N,3] x) => (float[N,3] y) { y = Relu (x) }"))
    assert [batch[0].shape[0] for batch in feeds.batches(["x"], PIXELS[:, :, 0, 0], 4)] == [4, 2]
    assert feeds.main.planes == (3, 1, 1)
    with pytest.raises(ShapeError, match="is not known"):
        _ = Feeds(build("(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu (x) }")).main.planes
