"""Resize and sampling on a grid."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxdfq.engine.host import Floats, Ints

_TORCH_LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


def Resize(
    x: Tensor,
    roi: Floats | None = None,
    scales: Floats | None = None,
    sizes: Ints | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """Resamples axis by axis. What torch's own kernels do exactly is left to them; the rest is gathered tap by tap."""
    axes = [axis % x.ndim for axis in (range(x.ndim) if axes is None else axes)]
    lengths = [x.shape[axis] for axis in axes]
    factors, widths = _factors_and_widths(lengths, scales, sizes, keep_aspect_ratio_policy)
    size = list(x.shape)
    for axis, width in zip(axes, widths, strict=True):
        size[axis] = math.floor(width)
    resized = [axis for axis, factor in zip(axes, factors, strict=True) if factor != 1 or size[axis] != x.shape[axis]]
    transform = coordinate_transformation_mode

    exact = all(width == math.floor(width) for width in widths) and keep_aspect_ratio_policy == "stretch"
    if exact and not antialias and min(resized, default=2) >= 2 and x.ndim in _TORCH_LINEAR and x.is_floating_point():
        whole = all(factor == math.floor(factor) for factor in factors)
        if mode == "nearest" and (
            (transform == "asymmetric" and nearest_mode == "floor")
            or (transform == "half_pixel" and whole and nearest_mode.startswith("round"))
        ):
            return F.interpolate(x, size[2:], mode="nearest")
        same_centre = transform == "half_pixel" or (transform == "pytorch_half_pixel" and min(size[2:]) > 1)
        if mode == "linear" and (same_centre or transform == "align_corners"):
            return F.interpolate(x, size[2:], mode=_TORCH_LINEAR[x.ndim], align_corners=not same_centre)
        if mode == "cubic" and x.ndim == 4 and same_centre and cubic_coeff_a == -0.75 and not exclude_outside:
            return F.interpolate(x, size[2:], mode="bicubic", align_corners=False)

    outside = None
    for position, (axis, length, width, factor) in enumerate(zip(axes, lengths, widths, factors, strict=True)):
        cropped = transform == "tf_crop_and_resize"
        if axis not in resized and not cropped:
            continue
        window = (roi[position], roi[position + len(axes)]) if cropped and roi else (0.0, 1.0)
        where = _source_coordinates(length, width, factor, transform, window, x.device)
        if cropped:
            beyond = ((where < 0) | (where > length - 1)).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
            outside = beyond if outside is None else outside | beyond
        if mode == "nearest":
            x = x.index_select(axis, _nearest(where, nearest_mode).clamp(0, length - 1))
        else:
            stretch = min(1.0, factor) if antialias else 1.0
            x = _interpolate(x, axis, where, mode, stretch, cubic_coeff_a, bool(exclude_outside))
    return x if outside is None else torch.where(outside, extrapolation_value, x)


def Upsample(x: Tensor, scales: Floats, *, mode: str = "nearest") -> Tensor:
    """Resize before it was Resize (opset 9): coordinates are divided by the scale and rounded down."""
    return Resize(x, None, scales, coordinate_transformation_mode="asymmetric", nearest_mode="floor", mode=mode)


def _factors_and_widths(
    lengths: Sequence[int], scales: Sequence[float] | None, sizes: Sequence[int] | None, policy: str
) -> tuple[list[float], list[float]]:
    """The factor of each axis, and length · factor, of which the new length is the whole part.

    Rounded to five places: 0.7 in float32 lies below 7/10, yet it makes seven of ten elements, not six.
    """
    if not sizes:
        if not scales:
            raise ValueError("Resize needs scales or sizes, and has neither")
        return list(scales), [round(length * scale, 5) for length, scale in zip(lengths, scales, strict=True)]
    factors = [size / length for size, length in zip(sizes, lengths, strict=True)]
    if policy == "stretch":
        return factors, [float(size) for size in sizes]
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [factor] * len(lengths), [float(math.floor(length * factor + 0.5)) for length in lengths]


def _source_coordinates(
    length: int, width: float, factor: float, transform: str, window: tuple[float, float], device: torch.device
) -> Tensor:
    """Where in the input each output element of one axis lies: (new length,) float64."""
    at = torch.arange(math.floor(width), dtype=torch.float64, device=device)
    match transform:
        case "asymmetric":
            return at / factor
        case "align_corners":
            return at * ((length - 1) / (width - 1)) if width != 1 else torch.zeros_like(at)
        case "pytorch_half_pixel":
            return (at + 0.5) / factor - 0.5 if width > 1 else torch.zeros_like(at)
        case "half_pixel_symmetric":
            return length / 2 * (1 - math.floor(width) / width) + (at + 0.5) / factor - 0.5
        case "tf_crop_and_resize":
            start, end = window
            if width == 1:
                return torch.full_like(at, 0.5 * (start + end) * (length - 1))
            return start * (length - 1) + at * ((end - start) * (length - 1) / (width - 1))
        case "half_pixel":
            return (at + 0.5) / factor - 0.5
    raise ValueError(f"coordinate_transformation_mode {transform!r} is not one of ONNX's")


def _nearest(where: Tensor, nearest_mode: str) -> Tensor:
    match nearest_mode:
        case "floor":
            return where.floor().long()
        case "ceil":
            return where.ceil().long()
        case "round_prefer_ceil":
            return (where + 0.5).floor().long()
    return (where - 0.5).ceil().long()


def _interpolate(
    x: Tensor, axis: int, where: Tensor, mode: str, stretch: float, cubic_a: float, exclude_outside: bool
) -> Tensor:
    """A weighted sum of the taps around each coordinate; below 1, `stretch` widens the filter against aliasing."""
    reach = 1 if mode == "linear" else 2
    first = math.floor(-reach / stretch) + 1
    base = where.floor()
    taps = torch.arange(first, reach - first + (reach == 1), device=where.device)
    distance = ((taps - (where - base).unsqueeze(1)) * stretch).abs()  # (target, taps)
    if mode == "linear":
        weights = (1 - distance).clamp(min=0)
    else:  # Keys, Eq. (4) of "Cubic convolution interpolation for digital image processing" (1981)
        a = cubic_a
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * a - 4 * a
        weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
    source = base.long().unsqueeze(1) + taps
    if exclude_outside:
        weights = torch.where((source >= 0) & (source < x.shape[axis]), weights, 0.0)
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(x.dtype)
    source = source.clamp(0, x.shape[axis] - 1)
    shape = [-1 if other == axis else 1 for other in range(x.ndim)]
    terms = [x.index_select(axis, source[:, tap]) * weights[:, tap].reshape(shape) for tap in range(source.shape[1])]
    return sum(terms[1:], start=terms[0])


_GRID_MODES = {
    "linear": "bilinear",
    "cubic": "bicubic",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "nearest": "nearest",
}


def GridSample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    return F.grid_sample(
        x, grid.to(x.dtype), mode=_GRID_MODES[mode], padding_mode=padding_mode, align_corners=bool(align_corners)
    )


def AffineGrid(theta: Tensor, size: Ints, *, align_corners: int = 0) -> Tensor:
    return F.affine_grid(theta, list(size), align_corners=bool(align_corners))
