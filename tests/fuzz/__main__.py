"""The command line of the fuzzer: `python -m tests.fuzz --seed 0 --cases 10000`, or `--case 123` for one alone."""

import argparse
import os
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path

from .campaign import Tally, campaign, keep, laid_down, run_case
from .cases import make_case
from .worker import Worker

RESULTS = Path(__file__).resolve().parents[2] / "samples" / "hostile" / "fuzz.json"


def main() -> int:
    """Exit code 1 where there are faults."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--case", type=int, help="one alone, with all that it says")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--examples", type=Path, help="a folder for the smallest example of each cause")
    parser.add_argument("--results", type=Path, const=RESULTS, nargs="?", help="a results file to write")
    given = parser.parse_args()
    if given.case is not None:
        return one(given.seed, given.case, given.examples)
    started = time.monotonic()
    tally = campaign(given.seed, range(given.first, given.first + given.cases), given.jobs, given.examples)
    seconds = time.monotonic() - started
    print(f"\n{tally.table() or 'no fault'}\n\n{given.cases} cases, {tally.faulty} faulty, {seconds:.0f} s")
    if given.results is not None:
        record(given.results, tally, given.seed, seconds)
    return 1 if tally.faulty else 0


def one(seed: int, number: int, examples: Path | None) -> int:
    """One case again, told in full."""
    case = make_case(seed, number)
    with Worker() as worker, laid_down(case) as folder:
        outcome, faults = run_case(worker, case, folder)
    print(f"{case.family}: onnxdfq {shlex.join(case.arguments)[:2000]!r}")
    print(f"exit {outcome.code}, {outcome.seconds:.1f} s, {outcome.memory / 2**20:,.0f} MiB, left {outcome.left}")
    print(f"stdout: {outcome.stdout[:2000]!r}\nstderr: {outcome.stderr[:3000]!r}\n{outcome.trace[-4000:]}")
    for fault in faults:
        print(f"FAULT {fault.key}\n      {fault.detail}")
    if examples is not None:
        keep(examples, f"case {number}", number, case, outcome)
    return 1 if faults else 0


def record(path: Path, tally: Tally, seed: int, seconds: float) -> None:
    """The results file."""
    from samples.record import write_results

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"cause": key, **asdict(cause)} for key, cause in sorted(tally.causes.items())]
    counts = {"families": dict(tally.families.most_common()), "outcomes": dict(tally.outcomes.most_common())}
    cases = sum(tally.families.values())
    write_results(path, rows, seed=seed, seconds=round(seconds), cases=cases, faulty=tally.faulty, **counts)


if __name__ == "__main__":
    sys.exit(main())
