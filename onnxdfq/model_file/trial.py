"""The outputs of a model on random inputs, in onnxruntime: the check of edits that must not change a model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdfq.model_file.inputs import InputSpec, constant_input, inputs

Outputs = list[NDArray[np.generic]]
Feeds = dict[str, NDArray[np.generic]]

# A file may declare a free batch and hold the one it was traced at: these are tried until one runs.
_TRACED_AT = (1, 2, 4, 8, 16, 32)


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
    declared = _declared_batch(model)
    for batch in _TRACED_AT if declared is None else (declared,):
        feeds = [random_feeds(model, batch, seed) for seed in range(count)]
        outputs = run(model, feeds)
        if outputs is not None:
            return Trial(batch=batch, feeds=feeds, outputs=outputs)
    return None


def _declared_batch(model: ir.Model) -> int | None:
    """The leading size of the input of highest rank, None if it is free."""
    shapes = [spec.shape for spec in inputs(model) if spec.shape]
    return max(shapes, key=len)[0] if shapes else None


def has_batch(spec: InputSpec, batch: int) -> bool:
    """Whether the leading axis of an input is the batch, rather than, say, the two entries of an image size."""
    return spec.shape[:1] == (None,) or (len(spec.shape) > 1 and spec.shape[0] == batch)


def random_feeds(model: ir.Model, batch: int, seed: int) -> Feeds:
    """Normal noise for float inputs with a batch, `constant_input` for the others."""
    random = np.random.default_rng(seed)
    return {
        spec.name: random.standard_normal(spec.with_batch(batch)).astype(spec.dtype.numpy())
        if spec.is_float and has_batch(spec, batch)
        else constant_input(spec, batch)
        for spec in inputs(model)
    }


def run(model: ir.Model, feeds: Sequence[Feeds]) -> list[Outputs] | None:
    """The outputs for each entry of `feeds`; None where onnxruntime cannot load or run the model."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        data = ir.to_proto(model).SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return [session.run(None, entry) for entry in feeds]
    except (
        failures.Fail,
        failures.InvalidArgument,
        failures.InvalidGraph,
        failures.InvalidProtobuf,
        failures.NotImplemented,
        failures.RuntimeException,
        RuntimeError,
        ValueError,
    ):
        return None


def same(outputs: Sequence[Outputs], expected: Sequence[Outputs]) -> bool:
    """Whether outputs are equal up to rounding, run by run and output by output."""
    pairs = [pair for ours, theirs in zip(outputs, expected, strict=True) for pair in zip(ours, theirs, strict=True)]
    return all(_close(ours, theirs) for ours, theirs in pairs)


def _close(found: NDArray[np.generic], expected: NDArray[np.generic]) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not np.issubdtype(found.dtype, np.floating):
        return bool(np.array_equal(found, expected))
    relative = 1e-2 if found.dtype.itemsize < 4 else 1e-3
    largest = float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected)))
    return bool(np.allclose(found, expected, rtol=relative, atol=relative * largest + 1e-6, equal_nan=True))
