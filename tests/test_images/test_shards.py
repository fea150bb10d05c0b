"""Samples in several files."""

from pathlib import Path

import numpy as np
import pytest

from onnxdfq.errors import DataError
from onnxdfq.images.normalization import Normalization
from onnxdfq.images.shards import Shards, shard_files
from onnxdfq.model_file import main_input

from ..graphs import plain_network

SPEC = main_input(plain_network())
BYTES = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("b", slice(4, 9)), ("a", slice(0, 4))):
        np.savez(tmp_path / f"{name}.npz", images=BYTES[rows])
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def shards_of(folder: Path) -> Shards:
    return Shards.of(shard_files(folder), SPEC, normalization=Normalization.parse("none"))


def test_which_files(folder: Path) -> None:
    files = (folder / "a.npz", folder / "b.npz")
    assert shard_files(folder) == shard_files(list(files)) == shard_files([str(file) for file in files]) == files
    for other in (folder / "a.npz", folder / "nothing", BYTES, [BYTES], [], None, "\0"):
        assert shard_files(other) == ()


def test_samples_lie_one_file_behind_the_other(folder: Path) -> None:
    shards = shards_of(folder)
    assert shards.counts == (4, 5) and len(shards) == 9
    wanted = BYTES.transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(shards.samples(1).main, wanted[4:], atol=1e-6)
    np.testing.assert_allclose(shards.first(6).main, wanted[:6], atol=1e-6)
    assert len(shards.first(100)) == 9 and len(shards.first(2)) == 2


def test_the_last_are_held_back(folder: Path) -> None:
    shards, spared = shards_of(folder).parted(2)
    assert shards.counts == (4, 3) and spared is not None
    np.testing.assert_allclose(spared.main, BYTES[7:].transpose(0, 3, 1, 2) / 255, atol=1e-6)
    assert len(shards.samples(1)) == 3
    most, _ = shards.parted(100)
    assert most.counts == (4, 1)
    assert shards.parted(0) == (shards, None)


def test_digests_tell_samples_apart(folder: Path) -> None:
    shards = shards_of(folder)
    found = {shards.digest(), shards.parted(2)[0].digest()}
    np.savez(folder / "a.npz", images=BYTES[1:5])
    assert len(found | {shards_of(folder).digest()}) == 3


def test_a_file_that_does_not_fit_is_named(folder: Path) -> None:
    np.savez(folder / "b.npz", images=np.zeros((2, 9, 9, 1), np.uint8))
    with pytest.raises(DataError, match=r"b\.npz: images uint8 2×9×9×1"):
        shards_of(folder)
    (folder / "b.npz").write_bytes(b"none")
    with pytest.raises(DataError, match=r"b\.npz cannot be read"):
        shards_of(folder)
