"""Images that several rows of a sample share."""

from pathlib import Path

import onnxdfq
from onnxdfq.progress import TerminalProgress


def dgh_images(model: Path, path: Path, *, normalize: str, images: int, steps: int, seed: int) -> Path:
    """Those of DGH at `path`, made where they are not there."""
    if not path.exists():
        onnxdfq.synthesize(
            model,
            output=path,
            method="dgh",
            normalize=normalize,
            images=images,
            steps=steps,
            seed=seed,
            progress=TerminalProgress,
        )
    return path
