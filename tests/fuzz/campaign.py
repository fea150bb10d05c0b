"""Many cases on several processes, their faults counted by cause, the smallest example of each kept."""

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from .cases import MODEL, Case, make_case
from .fork import Outcome
from .seeds import seeds
from .verdict import Fault
from .worker import Worker


@dataclass
class Cause:
    """How often a fault was seen, and its smallest example: number of the case, size of the file that was broken."""

    count: int
    number: int
    size: int
    command: str
    detail: str


@dataclass
class Tally:
    """What came of all cases so far."""

    families: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    causes: dict[str, Cause] = field(default_factory=dict)
    faulty: int = 0

    def add(self, number: int, case: Case, outcome: Outcome, faults: list[Fault]) -> list[str]:
        """Counts a case. Returns the causes of which it is the smallest example."""
        self.families[case.family] += 1
        self.outcomes["over time" if outcome.over_time else f"exit {outcome.code}"] += 1
        self.faulty += bool(faults)
        size, smallest = len(case.files.get(case.mutated, b"")), []
        for fault in faults:
            known = self.causes.get(fault.key)
            count = 1 if known is None else known.count + 1
            if known is None or (size, number) < (known.size, known.number):
                self.causes[fault.key] = Cause(count, number, size, " ".join(case.arguments)[:300], fault.detail)
                smallest.append(fault.key)
            else:
                known.count = count
        return smallest

    def table(self) -> str:
        """Causes, the most frequent first, each with its smallest example."""
        rows = sorted(self.causes.items(), key=lambda item: (-item[1].count, item[0]))
        return "\n".join(
            f"{cause.count:6}  {key}\n        case {cause.number}, {cause.size:,} bytes: {cause.command}"
            for key, cause in rows
        )


@contextmanager
def laid_down(case: Case) -> Iterator[Path]:
    """The files of a case in a new folder."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-case-"))
    try:
        for name, data in case.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        for name in case.pipes:
            os.mkfifo(folder / name)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_case(worker: Worker, case: Case, folder: Path) -> tuple[Outcome, list[Fault]]:
    """One case in its folder."""
    return worker.run(list(case.arguments), folder, outputs=case.outputs, model=MODEL)


def campaign(seed: int, numbers: range, jobs: int, examples: Path | None = None) -> Tally:
    """Runs cases, `jobs` at a time.

    Args:
        seed: Of all cases.
        numbers: Of the cases.
        jobs: Processes.
        examples: A folder for the smallest example of each cause.
    """
    tally, waiting, started, alone = Tally(), iter(numbers), time.monotonic(), Lock()
    seeds()  # built once, before there are threads

    def work() -> None:
        with Worker() as worker:
            for number in waiting:
                case = make_case(seed, number)
                with laid_down(case) as folder:
                    outcome, faults = run_case(worker, case, folder)
                with alone:
                    for key in tally.add(number, case, outcome, faults):
                        if examples is not None:
                            keep(examples, key, number, case, outcome)
                    done = sum(tally.families.values())
                    if done % 50 == 0:
                        pace = f"{done / (time.monotonic() - started):.1f}/s"
                        print(f"{done:6} cases, {tally.faulty} faulty, {len(tally.causes)} causes, {pace}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(work) for _ in range(jobs)]:
            future.result()
    return tally


def keep(examples: Path, key: str, number: int, case: Case, outcome: Outcome) -> None:
    """Lays the example of a cause down: its files, and what was said."""
    folder = examples / "".join(letter if letter.isalnum() else "_" for letter in key)[:120]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in case.files.items():
        if ".." not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    said: dict[str, Any] = {"cause": key, "case": number, "arguments": case.arguments, "exit": outcome.code}
    text = "\n".join(f"{name}: {value!r}" for name, value in said.items())
    text += f"\n\n--- stderr\n{outcome.stderr[-3000:]}\n--- trace\n{outcome.trace[-6000:]}"
    (folder / "README.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
