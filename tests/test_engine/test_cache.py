"""Large values lie in the temporary folder, and one without room ends the run in a sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onnxdfq import scratch
from onnxdfq.engine import cache as module
from onnxdfq.engine.cache import Cache
from onnxdfq.errors import OutputError

from ..slow import slow

# In a process of its own: without the reservation the system kills it.
FULL = """
import resource, sys
from onnxdfq.errors import OutputError
from onnxdfq.engine.cache import Cache
if sys.argv[1] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    with Cache(limit=0) as cache:
        cache.empty((2**20,)).fill_(1)
except OutputError as error:
    print(error.exit_code, error)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("reserves", [True, False])
def test_large_values_lie_in_a_file_that_goes(folder: Path, monkeypatch: pytest.MonkeyPatch, reserves: bool) -> None:
    if not reserves:  # as macOS
        monkeypatch.delattr(os, "posix_fallocate")
        monkeypatch.setattr(module, "_CHUNK", 1000)
    with Cache(limit=100) as cache:
        small = cache.empty((5, 10))
        assert list(folder.iterdir()) == []
        large = cache.empty((7, 321))
        assert len(list(folder.iterdir())) == 1
        for values in (small, large):
            values.fill_(3)
            assert bool((values == 3).all()) and values.dtype == torch.bfloat16
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("how", ["limit", slow("full")])
def test_a_temporary_folder_without_room(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", FULL, how]
    if how == "full":
        mount = f"mount -t tmpfs -o size=1m none {tmp_path}"
        within = ["unshare", "--mount", "--map-root-user"] if os.geteuid() else ["unshare", "--mount"]
        if subprocess.run([*within, "sh", "-c", mount], capture_output=True).returncode:
            pytest.skip("no small file system can be mounted here")
        command = [*within, "sh", "-c", f'{mount} && exec "$@"', "sh", *command]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert found.returncode == 0, found
    assert found.stdout.startswith(
        f"1 The values of a layer need 2,097,152 bytes in the temporary folder {tmp_path}, which does"
    )
    assert "set TMPDIR to a folder with room" in found.stdout
    assert list(tmp_path.iterdir()) == []


def test_no_room_removes_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    sentence = r"6 bytes in the temporary folder .* \(No space left on device\)"
    with pytest.raises(OutputError, match=sentence), Cache(0) as cache:
        cache.empty((3,))
    assert list(folder.iterdir()) == []
