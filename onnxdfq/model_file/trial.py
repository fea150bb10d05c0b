"""The outputs of a model on random inputs, in onnxruntime: the check of edits that must not change a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdfq.model_file.filling import fillings
from onnxdfq.model_file.inputs import batch_of, inputs
from onnxdfq.model_file.runtime import session_options

Outputs = list[NDArray[np.generic]]
Feeds = dict[str, NDArray[np.generic]]

# A file may declare a free batch and hold the one it was traced at: these are tried until one runs.
TRACED_AT = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The outputs of a model on noise, at one batch size at which it runs; one entry for each run."""

    batch: int
    feeds: list[Feeds]
    outputs: list[Outputs]


def try_out(model: ir.Model, count: int) -> Trial | None:
    """`count` runs at the declared batch, or where that is free at the first usual one that works.

    None where onnxruntime refuses the model.
    """
    declared = batch_of(model)
    for batch in TRACED_AT if declared is None else (declared,):
        feeds = random_feeds(model, batch, count)
        outputs = run(model, feeds)
        if outputs is not None:
            return Trial(batch=batch, feeds=feeds, outputs=outputs)
    return None


def random_feeds(model: ir.Model, batch: int, count: int) -> list[Feeds]:
    """Arrays for all inputs, `count` times, each at this batch: see `filling`."""
    found = fillings(model)
    drawn = [(spec, found[spec.name].draw(spec, batch * count, 0)) for spec in inputs(model)]
    return [
        {spec.name: spec.joined(samples[start : start + batch]) for spec, samples in drawn}
        for start in range(0, batch * count, batch)
    ]


def joined_feeds(feeds: Sequence[Feeds], axes: Mapping[str, int]) -> Feeds:
    """Several runs' arrays as those of one.

    Args:
        feeds: Of each run.
        axes: Input name → where its samples lie; of the others, the first run's array serves all.
    """
    return dict(feeds[0]) | {name: np.concatenate([fed[name] for fed in feeds], axis) for name, axis in axes.items()}


def run(model: ir.Model, feeds: Sequence[Feeds]) -> list[Outputs] | None:
    """The outputs for each entry of `feeds`; None where onnxruntime cannot load or run the model."""
    session = _session(model)
    if session is None:
        return None
    found = [_outputs(session, entry) for entry in feeds]
    return None if any(outputs is None for outputs in found) else [outputs for outputs in found if outputs is not None]


def first_that_runs(model: ir.Model, shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> int | None:
    """The place of the first shapes, by input name, at which the model runs on noise; None where it does at none."""
    specs, found = inputs(model), fillings(model)
    session = _session(model)
    for place, sizes in enumerate(shapes if session is not None else ()):
        sized = [replace(spec, shape=sizes[spec.name]) for spec in specs]
        feeds = {spec.name: spec.joined(found[spec.name].draw(spec, spec.batch or 1, 0)) for spec in sized}
        if _outputs(session, feeds) is not None:
            return place
    return None


def _session(model: ir.Model) -> Any:
    """A session without optimisations, None where onnxruntime refuses the model."""
    import onnxruntime

    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        data = ir.to_proto(model).SerializeToString()
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _failures():
        return None


def _outputs(session: Any, feeds: Feeds) -> Outputs | None:
    try:
        outputs: Outputs = session.run(None, feeds)
    except _failures():
        return None
    return outputs


def _failures() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    return (
        failures.Fail,
        failures.InvalidArgument,
        failures.InvalidGraph,
        failures.InvalidProtobuf,
        failures.NotImplemented,
        failures.RuntimeException,
        RuntimeError,
        ValueError,
    )


def same(outputs: Sequence[Outputs], expected: Sequence[Outputs]) -> bool:
    """Whether outputs are equal up to rounding, run by run and output by output."""
    pairs = [pair for ours, theirs in zip(outputs, expected, strict=True) for pair in zip(ours, theirs, strict=True)]
    return all(_close(ours, theirs) for ours, theirs in pairs)


def stacked(found: NDArray[np.generic], parts: Sequence[NDArray[np.generic]]) -> bool:
    """Whether an output is that of several runs side by side, along any axis; or the same in all, as a constant is."""
    if not all(isinstance(part, np.ndarray) for part in (found, *parts)):
        return False  # a sequence, of which nobody knows how it grows with the batch
    joined = [np.concatenate(parts, axis) for axis in range(parts[0].ndim) if _alike_but_along(axis, parts)]
    if all(_close(part, parts[0]) for part in parts[1:]):
        joined.append(parts[0])
    return any(_close(found, expected) for expected in joined)


def _alike_but_along(axis: int, parts: Sequence[NDArray[np.generic]]) -> bool:
    """Whether arrays can be joined; branches of an If may give other shapes from run to run."""
    return len({(part.ndim, *part.shape[:axis], *part.shape[axis + 1 :]) for part in parts}) == 1


def first_row(found: NDArray[np.generic], whole: NDArray[np.generic]) -> bool:
    """Whether an output is that of the first row alone of a run, along any axis; or the same, as a constant is."""
    if not isinstance(whole, np.ndarray):
        return False
    return _close(found, whole) or any(_close(found, whole.take([0], axis)) for axis in range(whole.ndim))


def _close(found: Any, expected: Any) -> bool:
    if not isinstance(found, np.ndarray) or not isinstance(expected, np.ndarray):
        both = isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected)
        return all(map(_close, found, expected)) if both else bool(found == expected)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not np.issubdtype(found.dtype, np.floating):
        return bool(np.array_equal(found, expected))
    relative = 1e-2 if found.dtype.itemsize < 4 else 1e-3
    largest = float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected)))
    return bool(np.allclose(found, expected, rtol=relative, atol=relative * largest + 1e-6, equal_nan=True))
