"""Checkpoints: written whole or not at all, taken under their own key only, and parts that are made once."""

import errno
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from onnxdfq.errors import InputError, OutputError
from onnxdfq.work.checkpoint import Checkpoint, Findings, Parts


def test_a_checkpoint_of_another_training_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    Checkpoint(path, "one").save({"a": torch.ones(3)}, {"step": 1})
    assert Checkpoint(path, "two").load() is None
    saved = Checkpoint(path, "one").load()
    assert saved is not None and saved.facts == {"step": 1} and torch.equal(saved.tensors["a"], torch.ones(3))


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "training.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no checkpoint of onnxdfq"):
        Checkpoint(path, "k").load()


def test_a_disk_that_is_full_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "training.safetensors"
    checkpoint = Checkpoint(path, "k")
    checkpoint.save({"a": torch.ones(3)}, {"step": 1})

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="the disk is full; nothing was written") as refused:
        checkpoint.save({"a": torch.zeros(3)}, {"step": 2})
    assert refused.value.exit_code == 1
    saved = checkpoint.load()
    assert saved is not None and saved.facts == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_a_stage_found_is_not_taken_for_how_far_it_is(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "images.safetensors", "k")
    checkpoint.save({"a": torch.ones(1)}, {})
    assert checkpoint.load() is not None and checkpoint.load(done=True) is None
    checkpoint.save({"a": torch.ones(1)}, {}, done=True)
    assert checkpoint.load() is None and checkpoint.load(done=True) is not None


@pytest.mark.parametrize("last", [False, True])
def test_findings_are_done_with_the_last_of_them_and_found_once(tmp_path: Path, last: bool) -> None:
    checkpoint = Checkpoint(tmp_path / "thresholds.safetensors", "k", every=0)
    assert Findings(checkpoint)("a", lambda: 1, last=last) == 1
    assert (checkpoint.load(done=last) is None, checkpoint.load(done=not last) is None) == (False, True)
    assert Findings(checkpoint)("a", lambda: 2) == 1


def test_parts_that_are_kept_are_not_made_again(tmp_path: Path) -> None:
    def parts() -> Parts:
        return Parts(Checkpoint(tmp_path / "images.safetensors", "k", every=0))

    made: list[int] = []

    def make(number: int) -> torch.Tensor:
        made.append(number)
        return torch.full((2,), float(number))

    def found(several: Parts, count: int) -> list[float]:
        return [float(part.sum()) for part in several.made([partial(make, number) for number in range(count)])]

    assert found(parts(), 3) == [0.0, 2.0, 4.0]
    assert found(parts(), 5) == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert made == [0, 1, 2, 3, 4]


def test_parts_without_a_folder_are_made_each_time() -> None:
    made: list[int] = []
    parts = Parts(None)
    for _ in range(2):
        list(parts.made([lambda: torch.tensor(made.append(0) or 1)]))  # type: ignore[func-returns-value]
    assert len(made) == 2
