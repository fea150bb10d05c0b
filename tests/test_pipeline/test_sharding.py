"""`synthesize --files`: memory holds the images of one file, whatever their number."""

import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

import onnxdfq
from onnxdfq.pipeline import sharding
from samples.memory.measuring import measured

from ..graphs import plain_network

FEW, MANY, EACH = 8, 20, 5000  # over the first files memory still settles
SIDE, CHANNELS = 16, 3


def test_images_of_a_file_are_gone_before_the_next_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_model: ir.Model
) -> None:
    run, seen = sharding.run_synthesis, []

    def watched(request: Any) -> Any:
        gc.collect()
        assert not [one for one in seen if one() is not None], "images of an earlier file are still held"
        result = run(request)
        seen.append(weakref.ref(result.images.pixels))
        return result

    monkeypatch.setattr(sharding, "run_synthesis", watched)
    result = onnxdfq.synthesize(small_model, output=tmp_path / "images", files=3, method="noise", images=8)
    assert len(seen) == 3 and result.images is None
    assert result.metrics["images"] == 24


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_hundred_thousand_images(tmp_path: Path) -> None:
    """The images of twelve files more would be 184 MB; one file has 15 MB."""
    model = tmp_path / "model.onnx"
    ir.save(plain_network(channels=CHANNELS, side=SIDE), model)
    peaks = []
    for count in (FEW, MANY):
        folder = tmp_path / str(count)
        given = ["--files", str(count), "--images", str(EACH), "--method", "noise", "-q", "-o", str(folder)]
        used = measured([sys.executable, "-m", "onnxdfq", "synthesize", str(model), *given])
        assert used.code == 0, used.said
        assert len(list(folder.iterdir())) == count
        peaks.append(used.resident)
    assert MANY * EACH == 100_000
    one_file = 4 * EACH * CHANNELS * SIDE * SIDE
    assert peaks[1] - peaks[0] < 2 * one_file
