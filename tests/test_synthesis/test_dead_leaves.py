"""Dead leaves: what they are drawn from, and what they have in common with photographs."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxdfq.model_file import InputSpec
from onnxdfq.synthesis.dead_leaves import BRIGHTNESS, CONTRAST, dead_leaves
from onnxdfq.synthesis.start import starting_images


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 17])
@pytest.mark.parametrize("size", [(32, 32), (4, 4), (1, 1), (24, 94), (76, 32), (1, 9), (200, 3)])
def test_any_size_and_number_of_channels(channels: int, size: tuple[int, int]) -> None:
    images = dead_leaves(3, channels, *size, seed=0)
    assert images.shape == (3, channels, *size) and images.dtype == np.float32
    assert np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1
    assert images[0].tobytes() != images[1].tobytes()


def test_an_image_is_the_same_whatever_the_others() -> None:
    images = dead_leaves(6, 3, 20, 30, seed=4)
    assert dead_leaves(6, 3, 20, 30, seed=4).tobytes() == images.tobytes()
    assert dead_leaves(2, 3, 20, 30, seed=4).tobytes() == images[:2].tobytes()
    assert dead_leaves(3, 3, 20, 30, seed=4, first=3).tobytes() == images[3:].tobytes()
    assert not np.isclose(dead_leaves(6, 3, 20, 30, seed=5), images).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize("size", [(32, 32), (48, 160)])
def test_contrast_and_brightness_are_drawn_for_each_image(size: tuple[int, int]) -> None:
    images = dead_leaves(200, 3, *size, seed=0)
    for found, (least, greatest) in ((images.std((1, 2, 3)), CONTRAST), (images.mean((1, 2, 3)), BRIGHTNESS)):
        # What is cut off at black and white takes a little of both.
        assert least - 0.02 < found.min() < least + 0.02
        assert greatest - 0.06 < found.max() < greatest + 0.02
    assert ((images == 0) | (images == 1)).mean() < 0.06


def test_the_spectrum_is_that_of_photographs() -> None:
    """Power falls as 1 / f² or so (photographs: with exponents of about 1.5 to 3); Gaussian pixels have exponent 0."""
    side = 128
    images = dead_leaves(40, 1, side, side, seed=0)[:, 0]
    window = np.hanning(side)[:, None] * np.hanning(side)
    power = np.square(np.abs(np.fft.fft2((images - images.mean((1, 2), keepdims=True)) * window))).mean(0)
    frequency = side * np.fft.fftfreq(side)
    ring = np.hypot(frequency[:, None], frequency).round().astype(int)
    rings = np.arange(3, side // 2)
    falls = [power[ring == number].mean() for number in rings]
    assert -3.2 < np.polyfit(np.log(rings), np.log(falls), 1)[0] < -1.5


def test_neighbours_agree_along_both_axes_and_so_do_channels() -> None:
    images = dead_leaves(100, 3, 32, 32, seed=0)
    for one, other in (
        (images[:, :, 1:], images[:, :, :-1]),
        (images[..., 1:], images[..., :-1]),
        (images[:, 0], images[:, 2]),
    ):
        assert 0.8 < np.corrcoef(one.ravel(), other.ravel())[0, 1] < 0.98
    sharp = np.abs(np.diff(images, axis=3))
    assert np.quantile(sharp, 0.99) > 5 * np.median(sharp), "edges stand out from what lies between"


def test_a_search_starts_from_noise_where_there_is_no_picture_or_no_room_for_leaves() -> None:
    def start(*shape: int, image: str | None = "first") -> torch.Tensor:
        spec = InputSpec(name="x", shape=(None, *shape[1:]), dtype=ir.DataType.FLOAT, image=image)
        return starting_images(spec, shape, seed=0, first=2, generator=torch.Generator().manual_seed(7))

    leaves = torch.from_numpy(dead_leaves(2, 3, 8, 8, seed=0, first=2))
    torch.testing.assert_close(start(2, 3, 8, 8) * 0.25 + 0.45, leaves)
    for shape, image in (((2, 3, 7, 8), "first"), ((2, 3, 16, 16), None), ((2, 64, 1, 512), None)):
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(7))
        assert torch.equal(start(*shape, image=image), noise)
