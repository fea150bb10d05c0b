"""Scratch folders go with their owners, and what is in use is never swept."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onnxdfq import scratch
from onnxdfq.errors import OutputError
from onnxdfq.scratch import scratch_folder, sweep
from onnxdfq.signals import uninterrupted

OWNER = """
import sys, time
from pathlib import Path
from onnxdfq.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "inner").mkdir()
    (folder / "inner" / "half").write_text("half")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def left_over(place: Path, number: int = 0) -> Path:
    """A folder as a killed owner leaves it."""
    folder = place / f".onnxdfq-{number:016x}.tmp"
    folder.mkdir()
    (folder / "half").write_text("half")
    return folder


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_a_folder_goes_with_its_block(own_temporary_folder: Path, error: type[BaseException] | None) -> None:
    try:
        with scratch_folder() as folder:
            assert folder.parent == own_temporary_folder
            assert folder.stat().st_mode & 0o777 == 0o700
            (folder / "inner").mkdir()
            (folder / "inner" / "file").write_text("x")
            if error is not None:
                raise error
    except BaseException as caught:
        assert type(caught) is error
    assert list(own_temporary_folder.iterdir()) == []


def test_what_a_killed_owner_left_is_swept_and_what_lives_is_not(tmp_path: Path) -> None:
    owners = [
        subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        killed, living = (Path(owner.stdout.readline().strip()) for owner in owners if owner.stdout is not None)
        sweep(tmp_path)
        assert killed.is_dir()
        owners[0].kill()
        owners[0].wait()
        assert killed.is_dir()
        with scratch_folder(tmp_path) as own:
            assert sorted(tmp_path.glob(".onnxdfq-*")) == sorted([living, own])
            assert (living / "inner" / "half").read_text() == "half"
    finally:
        for owner in owners:
            owner.kill()
            owner.communicate()
    sweep(tmp_path)
    assert list(tmp_path.glob(".onnxdfq-*")) == []


def test_a_folder_in_use_by_this_process_is_not_swept(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder, scratch_folder(tmp_path):
        sweep(tmp_path)
        assert folder.is_dir()


@pytest.mark.parametrize("name", ["onnxdfq-abcdefgh", ".onnxdfq-0123.tmp", "x.onnxdfq-0123456789abcdef.tmp", "x"])
def test_other_names_are_not_swept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    sweep(tmp_path)
    assert (tmp_path / name).is_dir()


def test_links_and_files_of_such_names_are_not_swept(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photograph").write_text("x")
    link, file = (tmp_path / f"onnxdfq-{number:016x}.tmp" for number in (1, 2))
    link.symlink_to(tmp_path / "mine")
    file.write_text("x")
    (left_over(tmp_path) / "inner").symlink_to(tmp_path / "mine")
    sweep(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([link.name, file.name, "mine", "temporary"])
    assert (tmp_path / "mine" / "photograph").exists()


def test_folders_of_others_are_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, me = left_over(tmp_path), os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    sweep(tmp_path)
    assert folder.is_dir()


def test_nothing_is_swept_where_nothing_can_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = left_over(tmp_path)
    monkeypatch.setattr(scratch, "fcntl", None)
    with scratch_folder(tmp_path) as own:
        assert own.is_dir()
        assert folder.is_dir()
    assert not own.exists()


def test_a_folder_that_cannot_be_locked_gets_a_name_that_is_not_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(scratch.fcntl, "flock", refuse)
    with scratch_folder(tmp_path) as own:
        monkeypatch.undo()
        sweep(tmp_path)
        assert own.is_dir()
    assert not own.exists()


def test_a_temporary_folder_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path / "absent"))
    sentence = r"The temporary folder takes no files: .*; set TMPDIR to a folder with room"
    with pytest.raises(OutputError, match=sentence) as caught, scratch_folder():
        raise AssertionError("the block must not run")
    assert caught.value.exit_code == 1


def test_an_interruption_waits_for_the_end_of_the_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
        done.append("all")
    assert done == ["all"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_interruption_does_not_stop_the_cleaning(
    own_temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = scratch.shutil.rmtree

    def interrupted(folder: Path, **given: bool) -> None:
        signal.raise_signal(signal.SIGINT)
        delete(folder, **given)

    monkeypatch.setattr(scratch.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), scratch_folder():
        raise KeyboardInterrupt
    assert list(own_temporary_folder.iterdir()) == []
