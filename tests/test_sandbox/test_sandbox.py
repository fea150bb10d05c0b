"""Whatever a task does, its caller goes on and is told in what way it ended."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onnxdfq.errors import ShapeError
from onnxdfq.sandbox import Call, Ended, Limits, TaskFault
from onnxdfq.sandbox import call as sandbox_call

PROGRAM = """
import os, signal, sys, time
from onnxdfq.errors import ShapeError
from onnxdfq.sandbox import serve

def add(stage, a, b):
    return {"sum": a + b, "process": os.getpid()}

def here(stage):
    return {"folder": os.getcwd()}

def staged(stage):
    stage("one"); stage("two")
    return {}

def refuse(stage):
    raise ShapeError("too wide", field="input_shape")

def fault(stage):
    [][0]

def hungry(stage):
    stage("eating")
    return {"size": len(bytearray(2**31))}

def busy(stage):
    stage("turning")
    while True: pass

def asleep(stage):
    time.sleep(60)

def killed(stage, number):
    os.write(1, b"nobody reads this")
    os.kill(os.getpid(), number)

def writes(stage, path):
    with open(path, "wb") as file:
        file.write(bytes(2**21))

def opens(stage):
    return {"files": len([open(os.devnull) for _ in range(1000)])}

serve({name: value for name, value in globals().items() if callable(value)}, int(sys.argv[1]))
"""
LIMITS = Limits(memory=2**30, seconds=1, wall_seconds=5, file_size=2**20, open_files=64)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("program")
    (folder / "onnxdfq_test_tasks.py").write_text(PROGRAM)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield "onnxdfq_test_tasks"


def outcome(program: str, task: str, limits: Limits = LIMITS, **arguments: Any) -> Any:
    with Call(program, task, arguments, limits) as call:
        return call.result()


def test_a_task_runs_in_the_current_folder_of_each_call(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert outcome(program, "here") == {"folder": str((tmp_path / name).resolve())}


def test_a_result_comes_from_another_process_each_time(program: str) -> None:
    first, second = (outcome(program, "add", a=1, b=2) for _ in range(2))
    assert first["sum"] == second["sum"] == 3
    assert len({first["process"], second["process"], os.getpid()}) == 3


def test_stages_are_waited_for(program: str) -> None:
    with Call(program, "staged", {}, LIMITS) as call:
        call.reached("two")
        assert call.result() == {}


def test_our_errors_come_back_as_they_are(program: str) -> None:
    with pytest.raises(ShapeError, match="too wide") as found:
        outcome(program, "refuse")
    assert found.value.field == "input_shape"


def test_other_exceptions_are_faults_that_say_where(program: str) -> None:
    with pytest.raises(TaskFault, match=r"IndexError in onnxdfq_test_tasks.py:\d+: list index out of range"):
        outcome(program, "fault")


@pytest.mark.parametrize(
    ("task", "how", "stage"),
    [("hungry", "memory", "eating"), ("busy", "time", "turning"), ("killed", "crash", "")],
)
def test_limits_and_crashes_end_the_task_alone(program: str, task: str, how: str, stage: str) -> None:
    with pytest.raises(Ended) as found:
        outcome(program, task, **({"number": int(signal.SIGFPE)} if task == "killed" else {}))
    assert (found.value.how, found.value.stage) == (how, stage)
    if task == "killed":
        assert found.value.signal == "SIGFPE"
    assert outcome(program, "add", a=1, b=1)["sum"] == 2


def test_sleep_ends_by_the_clock(program: str) -> None:
    with pytest.raises(Ended) as found:
        outcome(program, "asleep", replace(LIMITS, wall_seconds=1))
    assert found.value.how == "time"


def test_files_are_bounded_in_size_and_number(program: str, tmp_path: Path) -> None:
    with pytest.raises(TaskFault, match="File too large"):
        outcome(program, "writes", path=str(tmp_path / "large"))
    with pytest.raises(TaskFault, match="Too many open files"):
        outcome(program, "opens")


def test_who_gives_a_call_up_ends_its_task(program: str) -> None:
    with Call(program, "asleep", {}, replace(LIMITS, wall_seconds=60)):
        pass
    started = time.monotonic()
    assert outcome(program, "add", a=1, b=1)["sum"] == 2
    assert time.monotonic() - started < 5


def test_another_server_takes_the_place_of_one_that_was_ended(program: str) -> None:
    assert outcome(program, "add", a=1, b=1)["sum"] == 2
    process, _ = sandbox_call._SERVERS[program]
    process.kill()
    process.wait()
    assert outcome(program, "add", a=1, b=1)["sum"] == 2


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system shows no processes in /proc")
def test_the_server_ends_with_its_caller(program: str) -> None:
    """However that ends."""
    code = (
        "import os, sys, signal\n"
        "from onnxdfq.sandbox import Call, Limits, call\n"
        f"Call({program!r}, 'add', {{'a': 1, 'b': 1}}, Limits()).result()\n"
        f"print(call._SERVERS[{program!r}][0].pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    server = int(ran.stdout)
    deadline = time.monotonic() + 10
    while is_alive(server) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(server)


def is_alive(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"
