"""Both networks, run once over the samples: what all other parts of a diagnosis are told of."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from onnxdfq.engine.feeds import Feeds
from onnxdfq.errors import InputError
from onnxdfq.images.samples import Samples, SamplesLike
from onnxdfq.report.diagnosis.evidence import Evidence, Level, Sums
from onnxdfq.report.diagnosis.switches import Network, Values
from passes.graph.compared import compared_values
from passes.graph.editing import name_of

BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Runs:
    """Of a network on samples, by batch: the first few, as many as were to be kept.

    given: the inputs, as the network takes them, and counts, how many samples they are. exact: outputs of the float
    network, and noisy: of the quantized one, by name. levels, evidence: by name of the value, over all batches; of
    those that hold NaN or infinity there is none. broken: the first value that holds such in the quantized network and
    not in the float one; None where none does.
    """

    counts: tuple[int, ...]
    given: tuple[Values, ...]
    exact: tuple[Values, ...]
    noisy: tuple[Values, ...]
    levels: Mapping[str, Level]
    evidence: Mapping[str, Evidence]
    broken: str | None = None


def run_both(
    network: Network,
    samples: SamplesLike,
    *,
    size: int,
    keep: int,
    closely: Iterable[str],
    watched: Iterable[str],
    told: Callable[[Samples, Values, Values], None] = lambda *_: None,
) -> Runs:
    """The float network and the quantized one side by side, so that memory holds the values at one point of the graph
    alone.

    Args:
        network: To run.
        samples: In the model's input units.
        size: Samples in a batch, where the model leaves it open.
        keep: Samples, at least, whose inputs and outputs are kept.
        closely: Names of values to gather evidence of.
        watched: Of those whose level is enough.
        told: Takes each batch, with the outputs of the float network and of the quantized one.

    Raises:
        DataError: The samples do not fit the model's input.
        InputError: The model has no float output.
    """
    outputs = [name_of(value) for value in compared_values(network.model.graph)]
    if not outputs:
        raise InputError("The model computes no floating-point output, so there is nothing to measure noise on.")
    sums = {name: Sums(closely=False) for name in watched} | {name: Sums(closely=True) for name in closely}
    feeds, wanted = Feeds(network.model), list(dict.fromkeys([*sums, *outputs]))
    plain, quantized = (network.graph(feeds.names, wanted) for _ in range(2))
    counts, given, exact, noisy = list[int](), list[Values](), list[Values](), list[Values]()
    broken: str | None = None
    whole = Samples.of(samples)
    size = feeds.run_size(whole, size)
    parts = [whole[start : start + size] for start in range(0, len(whole) - (size - 1 if feeds.batch else 0), size)]
    parts = parts or [whole]  # too few for a fixed batch, as the feeds say
    for part in parts:
        values: Values = dict(
            zip(feeds.names, next(feeds.batches(feeds.names, part, size, network.device)), strict=True)
        )
        found: tuple[Values, Values] = {}, {}
        pairs = zip(plain.stream(values, frozenset()), quantized.stream(values, network.everything), strict=True)
        for (name, value), (_, other) in pairs:
            if name in sums:
                sums[name].add(value, other)
            if broken is None and not other.isfinite().all() and value.isfinite().all():
                broken = name
            if name in outputs:
                found[0][name], found[1][name] = value, other
        told(part, *found)
        if sum(counts) < keep:
            counts.append(len(part))
            given.append(values)
            exact.append(found[0])
            noisy.append(found[1])
    usable = {name: one for name, one in sums.items() if one.usable}
    return Runs(
        counts=tuple(counts),
        given=tuple(given),
        exact=tuple(exact),
        noisy=tuple(noisy),
        levels={name: one.level for name, one in usable.items()},
        evidence={name: seen for name, one in usable.items() if (seen := one.evidence) is not None},
        broken=broken,
    )
