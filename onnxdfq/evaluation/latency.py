"""How long models take in ONNX Runtime: one beside the other, for a machine is never the same twice."""

import time
from collections.abc import Callable

import numpy as np

from onnxdfq.evaluation.session import Session
from onnxdfq.images.samples import Samples, SamplesLike

LEAST_PAIRS, MOST_PAIRS = 10, 400
SECONDS = 1.0


def latencies(session: Session, other: Session, samples: SamplesLike) -> tuple[float, float]:
    """Milliseconds of one run of each on the first sample, medians of pairs that run one behind the other.

    Args:
        session: is run first in every pair.
        other: is run second; its time is that of the first times the median of their ratios, of which what else the
            machine does takes little.
        samples: in the models' input units.

    Raises:
        DataError: a model does not run on them.
    """
    one = Samples.of(samples)[:1]
    for each in (session, other):  # the first run allocates
        each.run(one)
    times: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(times) < LEAST_PAIRS or (len(times) < MOST_PAIRS and time.perf_counter() - start < SECONDS):
        times.append((_milliseconds(session.run, one), _milliseconds(other.run, one)))
    table = np.array(times)
    first = float(np.median(table[:, 0]))
    return first, first * float(np.median(table[:, 1] / table[:, 0]))


def _milliseconds(run: Callable[[Samples], object], samples: Samples) -> float:
    start = time.perf_counter()
    run(samples)
    return 1000 * (time.perf_counter() - start)
