"""A detector, data-free: mAP of FastestDet: `python -m samples.detection.run`, from the project's root.

With bits (w4a8, or w4a8:free:brecq) their rows are measured anew, and the others stay. The 128 COCO images are used for
evaluation only.
Needs pycocotools, which is in the extra `samples`.
"""

import contextlib
import io
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import onnxdfq
from onnxdfq.evaluation.evaluation import Session
from onnxdfq.model_file import load_model
from onnxdfq.progress import TerminalProgress
from samples.record import read_rows, write_results

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
MODEL = DATA / "models" / "fastestdet_coco.onnx"
IMAGES = DATA / "coco_val128_352.npz"
RESULTS = Path(__file__).with_name("results.json")
SEED = 0
LEAST_SCORE, NMS_IOU = 0.01, 0.45
COUNT = 64  # images, made once: one `onnxdfq compress` with the same settings makes the same ones
SETTINGS: tuple[dict[str, Any], ...] = (
    {"method": "dfmpc", "bits": "w6/6"},
    {"method": "dgh", "bits": "w8a8"},
    {"method": "dgh", "bits": "w8a8", "scheme": "free"},
    {"method": "dgh", "bits": "w4a8", "tuning": "none"},
    {"method": "dgh", "bits": "w4a8", "tuning": "brecq"},
    {"method": "dgh", "bits": "w4a8", "scheme": "free", "tuning": "brecq"},
    {"method": "dgh", "bits": "w4a8", "scheme": "free", "tuning": "distil"},
)
DEFAULTS: dict[str, Any] = {"scheme": "power-of-two", "tuning": "none", "effort": "fast", "seed": SEED}

Array = NDArray[np.float64]


def truth() -> COCO:
    """The labelled boxes, in pixels of the original images."""
    annotations, images, classes = [], {}, set()
    for image, label, cx, cy, w, h, width, height in np.load(IMAGES)["boxes"].astype(float):
        box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
        images[int(image)] = {"id": int(image), "width": width, "height": height}
        classes.add(int(label))
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": int(image),
                "category_id": int(label),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
        )
    coco = COCO()
    coco.dataset = {
        "images": list(images.values()),
        "annotations": annotations,
        "categories": [{"id": label} for label in sorted(classes)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def decoded(output: Array) -> tuple[Array, Array, Array]:
    """(85, H, W) of one image → boxes (K, 4) as fractions x0 y0 x1 y1, classes (K,), scores (K,), above LEAST_SCORE."""
    rows, columns = np.mgrid[: output.shape[1], : output.shape[2]]
    centre = (
        (columns + np.tanh(output[1])) / output.shape[2],
        (rows + np.tanh(output[2])) / output.shape[1],
    )
    size = 1 / (1 + np.exp(-output[3:5]))
    classes = output[5:].argmax(0)
    scores = np.maximum(output[0], 0) ** 0.6 * np.maximum(output[5:].max(0), 0) ** 0.4
    low, high = zip(*((c - s / 2, c + s / 2) for c, s in zip(centre, size, strict=True)), strict=True)
    boxes = np.stack([*low, *high], -1)
    kept = scores > LEAST_SCORE
    return boxes[kept], classes[kept], scores[kept]


def suppressed(boxes: Array, scores: Array) -> Iterator[int]:
    """Indices that non-maximum suppression leaves, best first."""
    order = np.argsort(-scores)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    while len(order):
        best, order = order[0], order[1:]
        yield int(best)
        corner = np.minimum(boxes[best, 2:], boxes[order, 2:]) - np.maximum(boxes[best, :2], boxes[order, :2])
        common = np.prod(np.maximum(corner, 0), axis=1)
        order = order[common <= NMS_IOU * (area[best] + area[order] - common)]


def mean_average_precision(session: Session, coco: COCO) -> tuple[float, float]:
    """mAP and mAP50, between 0 and 1."""
    images = np.load(IMAGES)["images"]
    pixels = np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2), np.float32) / 255  # BGR
    found = []
    for start in range(0, len(pixels), 16):
        (outputs,) = session.run(pixels[start : start + 16])
        for image, output in enumerate(outputs.astype(np.float64), start=start):
            if image not in coco.imgs:
                continue
            width, height = coco.imgs[image]["width"], coco.imgs[image]["height"]
            boxes, classes, scores = decoded(output)
            for label in np.unique(classes):
                of_class = np.flatnonzero(classes == label)
                for index in of_class[list(suppressed(boxes[of_class], scores[of_class]))]:
                    x0, y0, x1, y1 = boxes[index] * [width, height, width, height]
                    found.append([image, x0, y0, x1 - x0, y1 - y0, scores[index], label])
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(np.array(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def measure(settings: dict[str, Any], images: Path, coco: COCO, expected: tuple[float, float]) -> dict[str, Any]:
    """Compress and evaluate once; one row."""
    settings = DEFAULTS | settings
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compressed.onnx"
        result = onnxdfq.compress(
            MODEL,
            output=path,
            normalize="none",
            calibration=images if settings["method"] == "dgh" else None,
            images=COUNT,
            progress=TerminalProgress,
            **settings,
        )
        mean, at_half = mean_average_precision(Session(path), coco)
    row = {
        "model": MODEL.stem,
        **settings,
        "map_float": expected[0],
        "map": mean,
        "map50_float": expected[1],
        "map50": at_half,
        "drop_points": round(100 * (expected[0] - mean), 2),
        "seconds": result.metrics["seconds"],
    }
    print(
        f"{settings['method']:6} {settings['bits']:5} {settings['scheme']:13} drop {row['drop_points']:5.2f}",
        flush=True,
    )
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as the docs show them."""
    lines = [
        "| detector | method | bits | thresholds | tuning | mAP float | mAP | drop |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']} | {row['method']} | {row['bits']} | {row['scheme'] if row['method'] == 'dgh' else 'free'} | "
        f"{row['tuning']} | {100 * row['map_float']:.1f} | {100 * row['map']:.1f} | {row['drop_points']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def is_wanted(row: dict[str, Any], wanted: Collection[str]) -> bool:
    """Whether a row, or its settings, is named: by bits, or BITS:SCHEME:TUNING; all are where nothing is."""
    named = DEFAULTS | row
    return not wanted or not {named["bits"], f"{named['bits']}:{named['scheme']}:{named['tuning']}"}.isdisjoint(wanted)


def main(wanted: Collection[str]) -> None:
    """All rows, or those that are named in the place of the ones that are there; written after each, so that a broken
    run leaves what it has."""
    coco = truth()
    expected = mean_average_precision(Session(MODEL, load_model(MODEL)), coco)
    print(f"float: mAP {expected[0]:.4f}, mAP50 {expected[1]:.4f}", flush=True)
    rows = [row for row in read_rows(RESULTS) if not is_wanted(row, wanted)]
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.npz"
        made = onnxdfq.synthesize(
            MODEL, output=images, images=COUNT, normalize="none", seed=SEED, progress=TerminalProgress
        )
        for settings in (one for one in SETTINGS if is_wanted(one, wanted)):
            rows.append(measure(settings, images, coco, expected))
            write_results(RESULTS, rows, images=COUNT, seconds_images=made.metrics["seconds"])
    print(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
