"""A model simplified once that runs at any batch; onnxruntime compares the outputs of either edit with the file's."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnxdfq.model_file.free_sizes import with_free_sizes
from onnxdfq.model_file.inputs import FREE_BATCH, inputs
from onnxdfq.model_file.simplify import simplify
from onnxdfq.model_file.trial import Outputs, has_batch, run, same, try_out

# Three, not two: exporters write twos of their own (two halves, two boxes) that a batch of two would match by chance.
_TRIALS = 3


def free_batch(model: ir.Model) -> ir.Model:
    """The simplified model with a symbolic batch, where it then computes row by row what `model` computes.

    1. The leading size of the inputs becomes symbolic *before* the simplification, which would bake it in.
    2. onnxsim runs once, BatchNormalization kept.
    3. Sizes inside that hold the batch as a number are freed (`with_free_sizes`).
    Where none of these computes the same, the batch stays as in the file; where onnxruntime cannot run the file,
    `model` itself is returned.
    """
    trial = try_out(model, _TRIALS)
    if trial is None:
        return model
    batch, feeds, expected = trial.batch, trial.feeds, trial.outputs
    batched = {spec.name for spec in inputs(model) if has_batch(spec, batch)}
    stacked = feeds[0] | {name: np.concatenate([fed[name] for fed in feeds]) for name in batched}
    rows = [np.concatenate(parts) if parts[0].ndim else parts[0] for parts in zip(*expected, strict=True)]
    one_row = stacked | {name: stacked[name][:1] for name in batched}
    first_row = [output[:1] if output.ndim else output for output in rows]

    def runs_at_any_batch(candidate: ir.Model) -> bool:
        found = run(candidate, [stacked, one_row])
        return found is not None and same(found, [rows, first_row])

    symbolic = _with_symbolic_batch(model, batch)
    simplified = simplify(symbolic)
    candidates: list[Callable[[], ir.Model]] = [
        lambda: with_free_sizes(simplified, batch),
        lambda: simplified,
        lambda: with_free_sizes(symbolic, batch),
    ]
    for candidate in candidates:
        attempt = candidate()
        if runs_at_any_batch(attempt):
            return attempt
    fixed = simplify(model)
    found: list[Outputs] | None = run(fixed, feeds)
    return fixed if found is not None and same(found, expected) else model


def _with_symbolic_batch(model: ir.Model, batch: int) -> ir.Model:
    copy = model.clone()
    free = [value.shape[0] for value in copy.graph.inputs if value.shape and not isinstance(value.shape[0], int)]
    symbol = free[0] if free else ir.SymbolicDim(FREE_BATCH)
    for value in (*copy.graph.inputs, *copy.graph.outputs):
        if value.shape and len(value.shape) > 1 and value.shape[0] == batch:
            value.shape = ir.Shape([symbol, *value.shape[1:]])
    for node in copy.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    return copy
