"""Peak memory of commands, children included: it grows by less than 1.5 bytes with each byte of a large model, and not
with the number of shards that are merged."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxdfq.images.images import Images
from onnxdfq.images.merging import shard_origin
from onnxdfq.recipe.shard import Shard
from samples.memory.measuring import measured
from samples.memory.model import write_model
from samples.memory.run import COMMANDS, MOST

from .graphs import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")]

SMALL, LARGE = 20_000_000, 200_000_000
SHARE = 0.75  # of the model, that one protobuf holds; 2 GB of 2.5 are as much
# Read by every Python that starts with it.
LOWERED = """
from importlib.machinery import SourceFileLoader

run = SourceFileLoader.exec_module


def exec_module(self, module):
    run(self, module)
    if module.__name__ == "onnxdfq.model_file.saving":
        module.INLINE_LIMIT = {limit}


SourceFileLoader.exec_module = exec_module
"""


@pytest.mark.parametrize("name", ["inspect", "lint", "w8a32", "gptq", "dfmpc"])
def test_memory_grows_by_less_than_half_more_than_the_model(name: str, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    paths = os.pathsep.join(map(str, (tmp_path / "site", REPOSITORY)))
    found = []
    for size in (SMALL, LARGE):
        model, output = tmp_path / f"{size}.onnx", tmp_path / "out.onnx"
        whole = write_model(model, size)
        (tmp_path / "site" / "sitecustomize.py").write_text(LOWERED.format(limit=int(SHARE * whole)))
        command = [part.format(model=model, output=output) for part in COMMANDS[name]]
        used = measured([sys.executable, "-m", "onnxdfq", *command], env={**os.environ, "PYTHONPATH": paths})
        assert used.code == 0, used.said
        found.append((whole, used.resident))
    (small, low), (large, high) = found
    assert (high - low) / (large - small) < MOST


def test_shards_are_merged_one_at_a_time(tmp_path: Path) -> None:
    images, found = np.zeros((40, 3, 224, 224), np.float32), []
    for count in (2, 10):
        folder, output = tmp_path / str(count), tmp_path / f"{count}.npz"
        folder.mkdir()
        for place in range(count):
            origin = shard_origin(Shard(place + 1, count), place * len(images), len(images))
            shard = Images(pixels=images, method="noise", seed=0, provenance=origin)
            shard.save(folder / f"{place}.npz")
        used = measured([sys.executable, "-m", "onnxdfq", "images", "merge", str(folder), "-o", str(output)])
        assert used.code == 0, used.said
        assert output.stat().st_size > count * images.nbytes
        found.append(used.resident)
    assert found[1] < found[0] + images.nbytes / 2
