"""Operators of detection heads."""

import torch
from torch import Tensor

from onnxdfq.engine.host import Float, Int


def NonMaxSuppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: Int = 0,
    iou_threshold: Float = 0.0,
    score_threshold: Float | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """boxes: (N, B, 4), scores: (N, C, B) → (chosen, 3) int64: image, class, box, best first within a class."""
    if center_point_box:
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        low, high = centre - half, centre + half
    else:  # any two opposite corners
        low, high = torch.minimum(boxes[..., :2], boxes[..., 2:]), torch.maximum(boxes[..., :2], boxes[..., 2:])
    chosen = []
    for image in range(scores.shape[0]):
        for label in range(scores.shape[1]):
            score = scores[image, label]
            order = torch.argsort(score, descending=True, stable=True)
            if score_threshold is not None:
                order = order[score[order] > score_threshold]
            kept = _suppress(low[image, order], high[image, order], max_output_boxes_per_class, iou_threshold)
            chosen += [[image, label, box] for box in order[kept].tolist()]
    return torch.tensor(chosen, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _suppress(low: Tensor, high: Tensor, limit: int, iou_threshold: float) -> list[int]:
    """Positions of the boxes to keep, of boxes sorted best first. low, high: (B, 2)."""
    area = (high - low).prod(dim=-1)
    alive = torch.ones(len(area), dtype=torch.bool, device=low.device)
    kept: list[int] = []
    for position in range(len(area)):
        if len(kept) >= limit:
            break
        if not alive[position]:
            continue
        kept.append(position)
        extent = (torch.minimum(high, high[position]) - torch.maximum(low, low[position])).clamp(min=0)
        shared = extent.prod(dim=-1)
        alive &= shared <= iou_threshold * (area + area[position] - shared)
    return kept


def RoiAlign(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """x: (N, C, H, W), rois: (R, 4) as x1, y1, x2, y2 → (R, C, output_height, output_width). arXiv 1703.06870."""
    shift = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    corners = rois * spatial_scale - shift
    start, extent = corners[:, :2].flip(1), (corners[:, 2:] - corners[:, :2]).flip(1)  # (R, 2): y, x
    if not shift:  # the older convention makes every region at least one pixel wide
        extent = extent.clamp(min=1.0)
    output = (output_height, output_width)
    if sampling_ratio > 0:
        samples = [(sampling_ratio, sampling_ratio)] * len(rois)
    else:
        cells = torch.ceil(extent / torch.tensor(output, device=x.device)).clamp(min=1).long()
        samples = [(rows, columns) for rows, columns in cells.tolist()]
    pooled = [
        _pool_region(x[image], start[region], extent[region], output, samples[region], mode)
        for region, image in enumerate(batch_indices.tolist())
    ]
    return torch.stack(pooled) if pooled else x.new_zeros(0, x.shape[1], *output)


def _pool_region(
    image: Tensor, start: Tensor, extent: Tensor, output: tuple[int, int], samples: tuple[int, int], mode: str
) -> Tensor:
    """One region of one image (C, H, W) → (C, *output): bilinear samples, averaged or maximised within each bin."""
    axes = []
    for axis in range(2):
        count = output[axis] * samples[axis]
        at = start[axis] + (torch.arange(count, device=image.device) + 0.5) * extent[axis] / count
        axes.append(_bilinear_taps(at, image.shape[1 + axis]))
    (y0, y1, wy0, wy1), (x0, x1, wx0, wx1) = axes
    top, bottom = image[:, y0], image[:, y1]  # (C, samples along y, W)
    corners = torch.stack(
        [
            top[:, :, x0] * (wy0[:, None] * wx0),
            top[:, :, x1] * (wy0[:, None] * wx1),
            bottom[:, :, x0] * (wy1[:, None] * wx0),
            bottom[:, :, x1] * (wy1[:, None] * wx1),
        ]
    )
    bins = (-1, output[0], samples[0], output[1], samples[1])
    if mode == "max":  # ONNX takes the greatest weighted corner, not the greatest interpolated sample
        return corners.amax(dim=0).reshape(bins).amax(dim=(2, 4))
    return corners.sum(dim=0).reshape(bins).mean(dim=(2, 4))


def _bilinear_taps(at: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lower and upper neighbour and their weights; a sample more than one pixel outside counts as zero."""
    inside = ((at >= -1.0) & (at <= length)).to(at.dtype)
    at = at.clamp(0, length - 1)
    lower = at.floor().clamp(max=length - 1)
    fraction = at - lower
    upper = (lower + 1).clamp(max=length - 1)
    return lower.long(), upper.long(), (1 - fraction) * inside, fraction * inside
