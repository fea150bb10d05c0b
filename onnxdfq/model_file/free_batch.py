"""A model simplified once that runs at any batch; onnxruntime compares the outputs of either edit with the file's."""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from onnxdfq.errors import ShapeError
from onnxdfq.model_file.free_sizes import with_free_sizes
from onnxdfq.model_file.inputs import FREE_BATCH, inputs
from onnxdfq.model_file.simplify import simplify
from onnxdfq.model_file.trial import Outputs, first_row, joined_feeds, run, same, stacked, try_out
from passes.graph.editing import name_of

# Three, not two: exporters write twos of their own (two halves, two boxes) that a batch of two would match by chance.
_TRIALS = 3


def free_batch(model: ir.Model) -> ir.Model:
    """The simplified model with a symbolic batch, where it then computes row by row what `model` computes.

    1. The leading size of the inputs becomes symbolic *before* the simplification, which would bake it in.
    2. onnxsim runs once, BatchNormalization kept.
    3. Sizes inside that hold the batch as a number are freed (`with_free_sizes`).
    Where none of these computes the same, the batch is the one at which the file was seen to run; where onnxruntime
    cannot run the file, `model` itself is returned.

    Raises:
        ShapeError: At that batch nothing tells any more along which axis samples lie.
    """
    trial = try_out(model, _TRIALS)
    if trial is None:
        return model
    batch, feeds, expected = trial.batch, trial.feeds, trial.outputs
    axes = {spec.name: spec.batch_axis for spec in inputs(model) if spec.batch_axis is not None}
    together = joined_feeds(feeds, axes)
    one_row = feeds[0] | {name: feeds[0][name].take([0], axis) for name, axis in axes.items()}

    def runs_at_any_batch(candidate: ir.Model) -> bool:
        found = run(candidate, [together, one_row])
        return (
            found is not None
            and all(stacked(*pair) for pair in zip(found[0], zip(*expected, strict=True), strict=True))
            and all(first_row(*pair) for pair in zip(found[1], expected[0], strict=True))
        )

    symbolic = _with_symbolic_batch(model, batch, axes)
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
    held = model.clone()
    _set_batch(held, batch, axes)
    if any(spec.batch_axis != axes.get(spec.name) for spec in inputs(held)):
        raise ShapeError(
            f"The model says that it takes any number of samples, and computes with {batch} at a time only; export it "
            f"again with a batch of {batch}."
        )
    fixed = simplify(held)
    found: list[Outputs] | None = run(fixed, feeds)
    return fixed if found is not None and same(found, expected) else held


def _set_batch(model: ir.Model, batch: int | ir.SymbolicDim, axes: Mapping[str, int]) -> None:
    for value in model.graph.inputs:
        axis = axes.get(name_of(value))
        if axis is not None and value.shape:
            value.shape = ir.Shape([batch if at == axis else dim for at, dim in enumerate(value.shape)])


def _with_symbolic_batch(model: ir.Model, batch: int, axes: Mapping[str, int]) -> ir.Model:
    copy = model.clone()
    free = [dim for value in copy.graph.inputs for dim in value.shape or () if isinstance(dim, ir.SymbolicDim)]
    symbol = free[0] if free else ir.SymbolicDim(FREE_BATCH)
    _set_batch(copy, symbol, axes)
    for value in copy.graph.outputs:
        if value.shape and len(value.shape) > 1 and value.shape[0] == batch:
            value.shape = ir.Shape([symbol, *value.shape[1:]])
    for node in copy.graph.all_nodes():
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    return copy
