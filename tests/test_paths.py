"""What is opened: ordinary files, up to a size. Nothing here may hang."""

import os
from pathlib import Path

import pytest

from onnxdfq.errors import DataError, InputError
from onnxdfq.paths import check_ordinary, open_ordinary, read_ordinary


def put(kind: str, folder: Path) -> Path:
    path = folder / kind
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to("loop")
        case "device":
            path.symlink_to("/dev/zero")
        case "large":
            with path.open("wb") as stream:
                stream.truncate(10**12)
        case "behind a file":
            (folder / "file").write_text("")
            path = folder / "file" / "x"
        case "long":
            path = folder / ("x" * 300)
        case "nul":
            path = folder / "a\0b"
    return path


CASES = {
    "missing": "there is no such file",
    "behind a file": "there is no such file",
    "pipe": "is a pipe; give an ordinary file",
    "folder": "is a folder; give an ordinary file",
    "device": "is a device; give an ordinary file",
    "loop": "its links lead in a circle",
    "large": r"has 1,000,000,000,000 bytes; at most 100 are read",
    "long": "the name is too long",
    "nul": r"a\\x00b: no path holds a NUL character",
}


@pytest.mark.parametrize(("kind", "said"), CASES.items())
def test_what_is_refused(kind: str, said: str, tmp_path: Path) -> None:
    path = put(kind, tmp_path)
    for read in (check_ordinary, open_ordinary, read_ordinary):
        with pytest.raises(InputError, match=said):
            read(path, most=100)
    with pytest.raises(DataError, match="^The plan.*" + said.removeprefix(r"a\\x00b")):
        check_ordinary(path, most=100, called=f"The plan {path}", kind=DataError)


def test_ordinary_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "empty").write_bytes(b"")
    assert read_ordinary(tmp_path / "link", most=5) == b"12345"
    assert read_ordinary(tmp_path / "empty", most=5) == b""
    with pytest.raises(InputError, match="has 5 bytes; at most 4"):
        read_ordinary(tmp_path / "a", most=4)
    with pytest.raises(InputError, match="empty is empty"):
        open_ordinary(tmp_path / "empty")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_files_of_the_system_have_no_size_and_are_not_read() -> None:
    assert read_ordinary(Path("/proc/self/maps"), most=5) == b""
    with pytest.raises(InputError, match="is empty"):
        open_ordinary(Path("/proc/self/maps"))


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "x")
    ordinary = Path(__file__).stat()
    monkeypatch.setattr(Path, "stat", lambda path: ordinary)
    with pytest.raises(InputError, match="is a pipe"):
        read_ordinary(tmp_path / "x", most=10**9)
