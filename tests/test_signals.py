"""Ctrl-C, SIGTERM and SIGHUP end the command line in one true sentence, wherever they come."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# The command line with one command more, whose body is given.
COMMAND = """
import os, signal, sys, time
from onnxdfq.cli.main import main as group
from onnxdfq.errors import DfqError, InputError
from onnxdfq.signals import raise_what_came, uninterrupted, written

def end(name="SIGTERM"):
    signal.raise_signal(getattr(signal, name))

@group.command("wait")
def wait():
    {body}
    print("went on")

from onnxdfq.__main__ import main
sys.argv = ["onnxdfq", "wait"]
main()
"""
NOTHING = "onnxdfq: interrupted by SIGTERM; nothing was written.\n"


def run(body: str, folder: Path, before: str = "") -> "subprocess.CompletedProcess[str]":
    code = before + COMMAND.format(body=body.replace("\n", "\n    "))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(folder)])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize(
    ("name", "code", "by"), [("SIGINT", 130, ""), ("SIGTERM", 143, " by SIGTERM"), ("SIGHUP", 129, " by SIGHUP")]
)
def test_each_signal_has_its_sentence_and_its_code(tmp_path: Path, name: str, code: int, by: str) -> None:
    restore = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # ignored in the background
    found = run(f"end({name!r})", tmp_path, before=restore)
    assert (found.returncode, found.stdout) == (code, "")
    assert found.stderr == f"onnxdfq: interrupted{by}; nothing was written.\n"


@pytest.mark.parametrize(
    "body",
    [
        "try: end()\nexcept KeyboardInterrupt: raise RuntimeError('a library failed')",
        "try: end()\nexcept KeyboardInterrupt: raise InputError('a library said so')",
        "try: end()\nfinally: end('SIGTERM')",
        "try: end()\nexcept KeyboardInterrupt: pass\nraise_what_came()",
        "class Object:\n    def __del__(self): end()\nObject()\ntime.sleep(5)",
        "import interrupted\ntime.sleep(5)",
    ],
    ids=["as another error", "as an error of ours", "twice", "swallowed", "in a destructor", "while importing"],
)
def test_wherever_it_comes(tmp_path: Path, body: str) -> None:
    touch = "import pathlib\npathlib.Path(__file__).with_name('whole').touch()"
    (tmp_path / "interrupted.py").write_text(f"import signal\nsignal.raise_signal(signal.SIGTERM)\n{touch}")
    found = run(body, tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (143, "", NOTHING)
    assert (tmp_path / "whole").exists() == ("interrupted" in body)


def test_what_was_written_is_not_denied(tmp_path: Path) -> None:
    found = run("written.append('out.onnx')\nend()", tmp_path)
    assert found.stderr == "onnxdfq: interrupted by SIGTERM; written by then: out.onnx.\n"


def test_a_work_folder_is_told_of_and_is_no_result(tmp_path: Path) -> None:
    save = "Checkpoint(Path('work.safetensors').resolve(), 'k').save({}, {})"
    body = f"from pathlib import Path\nfrom onnxdfq.work.checkpoint import Checkpoint\n{save}\nend()"
    with_folder = f"import os; os.chdir({str(tmp_path)!r})\n"
    found = run(body, tmp_path, before=with_folder)
    assert found.stderr == (
        f"onnxdfq: interrupted by SIGTERM; nothing was written; {tmp_path} keeps how far it is, and the same command "
        "goes on from there.\n"
    )


def test_while_the_command_line_is_imported(tmp_path: Path) -> None:
    """Before anything of it is there, and before its arguments are read."""
    (tmp_path / "click.py").write_text(
        "import signal, sys\nsignal.raise_signal(signal.SIGTERM)\n"
        "sys.path.remove(str(__import__('pathlib').Path(__file__).parent))\ndel sys.modules['click']\nimport click\n"
    )
    code = "from onnxdfq.__main__ import main\nmain()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert (found.returncode, found.stderr) == (143, NOTHING)


def test_what_is_ignored_stays_so(tmp_path: Path) -> None:
    """As nohup has it."""
    ignore = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    found = run("end('SIGHUP')", tmp_path, before=ignore)
    assert (found.returncode, found.stdout, found.stderr) == (0, "went on\n", "")


def test_a_moment_that_is_not_cut_in_two(tmp_path: Path) -> None:
    found = run("with uninterrupted():\n    end()\n    print('whole')", tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (143, "whole\n", NOTHING)


def test_other_threads_are_not_in_the_way() -> None:
    code = """
import threading
from onnxdfq.signals import uninterrupted
def work():
    with uninterrupted():
        print("done")
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("done\n", "")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_telemetry_of_onnx_runtime_does_not_start(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    code = "import onnxdfq, onnxruntime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    subprocess.run([sys.executable, "-c", code], check=True, env={**environment, "TMPDIR": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []
