"""Dead leaves: images made from no data and no network, with the statistics that all photographs share.

Random ellipses, boxes and diamonds, of sizes that fall off as a power law, painted over each other: objects that hide
objects, at every scale. This gives the edges, the flat areas and the spectrum (power as about 1 / f²) that filters of
trained networks answer to, and that Gaussian pixels lack.

Source: Lee, Mumford and Huang, Occlusion models for natural images, IJCV 41, 2001 (sizes as r^-3, which look the same
from any distance); Baradad et al., arXiv 2106.05963 (networks learn from such images, and more from textured leaves).
The constants: of a few values each that with the least BN distance, in geometric mean over seven networks (ResNet-20:
.03, where Gaussian pixels have .60); contrast and brightness as photographs have them.
"""

import numpy as np
from jaxtyping import Float32, Float64, Int32
from numpy.typing import NDArray

COVER = 2  # leaves lie over each place, in the mean; an eighth of the image shows the ground
LEAST_RADIUS, GREATEST_RADIUS = 1 / 16, 1.0  # of a leaf, in sides of a square of the image's area
LEAST_PIXELS = 5.0  # of a radius: small images show large objects
LEAST_ASPECT = 0.4  # of a leaf's two radii
AREA = (np.pi + 4 + 2) / 3 * (1 + LEAST_ASPECT) / 2  # of the mean leaf: ellipse, box, diamond; in squares of its radius
COLOUR = 0.06  # share of the variance that channels do not have in common
SHADE = 0.8  # by how much a leaf's brightness changes over the whole image, in deviations of the brightness of leaves
TEXTURE = 0.7  # deviation of the strongest texture, in the same unit
BLUR = 0.1  # that a pixel takes from each neighbour, as lenses do
CONTRAST = 0.15, 0.3  # least and greatest deviation of an image's pixels, of the range 0..1
BRIGHTNESS = 0.35, 0.6  # and their mean


def dead_leaves(
    count: int, channels: int, height: int, width: int, *, seed: int, first: int = 0
) -> Float32[NDArray[np.float32], "{count} {channels} {height} {width}"]:
    """Images of random leaves, of the range 0..1.

    Args:
        count: How many.
        channels: Any number; three do for red, green and blue in any order.
        height: In pixels, one or more.
        width: Likewise.
        seed: With an image's number, what it is drawn from: how many others there are plays no part.
        first: The number of the first image.

    Returns:
        (N, C, H, W) float32. Beyond it, memory for a few images is taken.
    """
    images = np.empty((count, channels, height, width), np.float32)
    for number, image in enumerate(images, first):
        random = np.random.default_rng([seed, number])
        _paint(image, random)
        _blur(image)
        _expose(image, random)
    return images


def _paint(image: Float32[NDArray[np.float32], "c h w"], random: np.random.Generator) -> None:
    """Leaves whose brightness has mean 0 and deviation 1, each with a colour, a shade and a texture."""
    channels, height, width = image.shape
    radii = _radii((height * width) ** 0.5, random)
    owner = _owner(height, width, radii, random)
    leaves = len(radii) + 1  # and the ground
    brightness = random.uniform(-(3**0.5), 3**0.5, leaves).astype(np.float32)
    colours = random.standard_normal((channels, leaves), np.float32)
    slopes = SHADE * random.standard_normal((2, leaves), np.float32)
    textures = TEXTURE * random.random(leaves, np.float32) ** 2  # most leaves are nearly smooth
    light = (1 - COLOUR) ** 0.5 * brightness[owner]
    light += slopes[0][owner] * np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    light += slopes[1][owner] * np.linspace(-0.5, 0.5, width, dtype=np.float32)
    light += textures[owner] * _texture(height, width, random)
    for plane, colour in zip(image, COLOUR**0.5 * colours, strict=True):
        np.add(light, colour[owner], out=plane)


def _radii(side: float, random: np.random.Generator) -> Float64[NDArray[np.float64], "leaves"]:
    """The greater radius of each leaf, in pixels, in the order of painting. side: of a square of the image's area."""
    greatest = side * GREATEST_RADIUS
    least = min(max(side * LEAST_RADIUS, LEAST_PIXELS), greatest / 2)
    mean_square = 2 * np.log(greatest / least) / (least**-2 - greatest**-2)
    count = int(np.ceil(COVER * side**2 / (AREA * mean_square)))
    # r^-3 between two limits: 1 / r² is uniform.
    return np.asarray(random.uniform(greatest**-2, least**-2, count) ** -0.5)


def _owner(
    height: int, width: int, radii: Float64[NDArray[np.float64], "leaves"], random: np.random.Generator
) -> Int32[NDArray[np.int32], "{height} {width}"]:
    """The number of the leaf on top at each pixel, from 1 on, and 0 for the ground."""
    count = len(radii)
    others = radii * random.uniform(LEAST_ASPECT, 1, count)
    angles = random.uniform(0, np.pi, count)
    kinds = random.integers(3, size=count)
    centres = random.uniform(-0.5, (height - 0.5, width - 0.5), (count, 2))
    reach = np.where(kinds == 1, np.hypot(radii, others), radii)[:, None]  # a box reaches as far as its corners
    starts = np.maximum(np.ceil(centres - reach), 0).astype(int).tolist()
    ends = (np.floor(centres + reach).astype(int) + 1).tolist()
    cosines, sines = np.cos(angles), np.sin(angles)
    # From pixels about a centre to the leaf's own axes, in units of its radii.
    maps = np.stack([cosines / radii, sines / radii, -sines / others, cosines / others], 1).astype(np.float32)
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    owner = np.zeros((height, width), np.int32)
    for leaf, ((top, left), (bottom, right)) in enumerate(zip(starts, ends, strict=True)):
        y, x = rows[top:bottom] - np.float32(centres[leaf, 0]), columns[left:right] - np.float32(centres[leaf, 1])
        u, v = maps[leaf, 0] * x + maps[leaf, 1] * y, maps[leaf, 2] * x + maps[leaf, 3] * y
        if kinds[leaf] == 0:
            inside = u * u + v * v <= 1
        elif kinds[leaf] == 1:
            inside = np.maximum(np.abs(u), np.abs(v)) <= 1
        else:
            inside = np.abs(u) + np.abs(v) <= 1
        np.copyto(owner[top:bottom, left:right], leaf + 1, where=inside)
    return owner


def _texture(height: int, width: int, random: np.random.Generator) -> Float32[NDArray[np.float32], "{height} {width}"]:
    """Noise whose amplitudes fall as 1 / frequency, of mean 0 and deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.standard_normal((height, width))) / frequency
    field = np.fft.irfft2(spectrum, s=(height, width))
    return (field / max(float(field.std()), 1e-12)).astype(np.float32)  # one pixel has no deviation


def _blur(image: Float32[NDArray[np.float32], "c h w"]) -> None:
    """Each pixel's share of its neighbours, along rows and columns; borders are continued."""
    for axis in (1, 2):
        lines = image.swapaxes(axis, 1)
        before = np.concatenate([lines[:, :1], lines[:, :-1]], axis=1)
        after = np.concatenate([lines[:, 1:], lines[:, -1:]], axis=1)
        lines *= 1 - 2 * BLUR
        lines += BLUR * (before + after)


def _expose(image: Float32[NDArray[np.float32], "c h w"], random: np.random.Generator) -> None:
    """Contrast and brightness, drawn for each image; what falls out of the range is cut off, as in cameras."""
    contrast, brightness = random.uniform(*CONTRAST), random.uniform(*BRIGHTNESS)
    image -= image.mean()
    image *= contrast / max(float(image.std()), 1e-6)
    image += brightness
    np.clip(image, 0, 1, out=image)
