"""Whatever ends a run, and whenever: no output is broken, and the next run sweeps what is left."""

from pathlib import Path

import pytest

from .graphs import REPOSITORY


@pytest.mark.slow
def test_a_hundred_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    from samples.hostile.kills import COUNT, FAULTS, SEED, measure

    rows = measure(tmp_path, COUNT, SEED)
    assert sum(row["kills"] for row in rows) == COUNT
    assert sum(row["as_before"] for row in rows) > COUNT / 2
    assert not [row for row in rows if any(row[key] for key in FAULTS)]
