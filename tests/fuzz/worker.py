"""A warm process that runs cases one after the other, each in forks of its own: `python -m tests.fuzz.worker`.

Requests and answers are lines of JSON. Whatever a case does to its forks, this one has run no kernel, so that forking
is safe, and imports nothing again.
"""

import gc
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import traceback
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from .fork import Limits, Outcome, run
from .seeds import DIGITS
from .verdict import Fault, faults


class Worker:
    """Starts the process and speaks with it; to be closed."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=Path(__file__).resolve().parents[2],
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(
        self, arguments: list[str], folder: Path, *, outputs: tuple[str, ...] = (), model: str = "", **limits: Any
    ) -> tuple[Outcome, list[Fault]]:
        """One command line in a folder, with all that is wrong with it.

        Args:
            arguments, folder: As a user would give them, from there.
            outputs: Names of files that a success may leave.
            model: Name of the float model, against which what is written is held.
            limits: See `Limits`.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"arguments": arguments, "folder": str(folder), "outputs": outputs, "model": model, "limits": limits}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        outcome = {**answer["outcome"], "limits": Limits(**limits), "left": tuple(answer["outcome"]["left"])}
        return Outcome(**outcome), [Fault(**fault) for fault in answer["faults"]]


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What came of one command."""
    arguments, folder, limits = request["arguments"], Path(request["folder"]), Limits(**request["limits"])
    outcome = run(lambda: _command(arguments), folder, limits)
    found = faults(outcome, arguments, request["outputs"])
    plans = {value for option, value in pairwise(arguments) if option == "--save-plan"}  # whatever they are called
    if outcome.code == 0 and request["model"]:
        for name in outcome.left:
            if name.endswith(".onnx") and name not in plans:
                found += _look(folder, request["model"], name, limits)
    return {"outcome": {key: value for key, value in asdict(outcome).items() if key != "limits"},
            "faults": [asdict(fault) for fault in found]}  # fmt: skip


def _command(arguments: list[str]) -> None:
    """The command line, which keeps a stack of what it takes for its own fault."""
    import click

    from onnxdfq.cli.main import main

    invoke = click.Group.invoke

    def traced(self: click.Group, ctx: click.Context) -> Any:
        try:
            return invoke(self, ctx)
        except Exception:
            fd = os.environ.get("FUZZ_TRACE")
            if fd:
                os.write(int(fd), traceback.format_exc().encode("utf-8", "replace"))
            raise

    click.Group.invoke = traced  # type: ignore[method-assign]
    main(arguments, prog_name="onnxdfq")


def _look(folder: Path, model: str, written: str, limits: Limits) -> list[Fault]:
    from .verdict import normalised
    from .written import look

    seen = run(lambda: look(folder / model, folder / written), folder, limits)
    said = seen.stdout.strip() or ("" if seen.code == 0 else f"kills ONNX Runtime: exit {seen.code}")
    return [Fault(kind="written", cause=normalised(said), detail=said)] if said else []


def warm() -> None:
    """Imports all that a command may need, now."""
    import PIL.Image
    import torch
    import torch._dynamo  # an optimizer does, and makes torch's own empty folder beside the temporary files

    import onnxdfq
    import passes

    PIL.Image.init()
    torch.set_num_threads(1)
    for package in (onnxdfq, passes):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    from onnxdfq.model_file.opening import read_model

    read_model(DIGITS)  # starts the process that reads models, which serves all forks
    gc.collect()
    gc.freeze()


def main() -> None:
    """Answers until stdin ends."""
    warm()
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
