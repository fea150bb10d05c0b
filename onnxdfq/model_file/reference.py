"""The file itself in ONNX Runtime: what does not run there goes no further, and what is written is held against it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxdfq.errors import ModelFileError
from onnxdfq.model_file.inputs import batch_of, inputs
from onnxdfq.model_file.loading import REPAIRED
from onnxdfq.model_file.runtime import lean_options, reason_of, session_options
from onnxdfq.model_file.saving import is_large, runs_lean
from onnxdfq.model_file.trial import TRACED_AT, Feeds, Outputs, joined_feeds, random_feeds, stacked, try_out
from onnxdfq.model_file.untrusted import read_proto
from passes.graph.compared import compared_values, is_float
from passes.graph.editing import name_of

MADE = "reference.onnx"
"""The file with more outputs, where these are needed; it lies beside the model that is handed over."""
_TRIALS = 3


@dataclass(frozen=True, kw_only=True)
class Reference:
    """How the float original is run.

    Attributes:
        own: Whether the file itself runs; else its float32 form, as it was read, stands in for it.
        why: What ONNX Runtime says against the file itself; "" where nothing.
        batch: The only number of samples that runs at once, None where any does.
        types: Input name → its type in the file, by ONNX's number.
        digest: SHA-256 of the file and its external data, in hexadecimal.
    """

    own: bool
    why: str
    batch: int | None
    types: dict[str, int] = field(default_factory=dict)
    digest: str = ""


def run_file(path: Path, model: ir.Model) -> Reference:
    """Runs the file on noise of the sizes that `model` has.

    Args:
        path: Of the file.
        model: What `read_float_model` made of it.

    Raises:
        ModelFileError: Neither the file nor `model` runs, or what it computes is not finite.
    """
    reason, declared = "", batch_of(model)
    try:
        session = _open(path, lean=runs_lean(model))
        types = {value.name: _element_type(value.type) for value in session.get_inputs()}
    except Exception as error:  # onnxruntime's own exceptions share no base class but this
        reason, session, types = reason_of(error), None, {}
    if (repaired := model.metadata_props.pop(REPAIRED, None)) is not None:
        reason, session = repaired, None
    for batch in (TRACED_AT if declared is None else (declared,)) if session is not None else ():
        feeds = random_feeds(model, batch, _TRIALS)
        try:
            outputs = [_run(session, fed, types) for fed in feeds]
        except Exception as error:  # as above
            reason = reason or reason_of(error)
            continue
        _refuse_not_finite(path, model, outputs)
        free = declared is None and _is_free(session, types, model, feeds, outputs)
        return Reference(own=True, why="", batch=None if free else batch, types=types)
    trial = None if is_large(model) else try_out(model, 1)
    if trial is None:
        advice = "Export it again, and see that onnxruntime runs it."
        if "not a registered" in reason:
            advice = "Give the library that has this operator with --op-library."
        raise ModelFileError(f"ONNX Runtime does not run {path}: {reason} {advice}")
    _refuse_not_finite(path, model, trial.outputs)
    return Reference(own=False, why=reason, batch=declared)


def inner_values(model: ir.Model) -> list[str]:
    """Names of the values that are compared and no outputs of the graph."""
    outputs = set(model.graph.outputs)
    return [name_of(value) for value in compared_values(model.graph) if value not in outputs]


def with_outputs(path: Path, names: Sequence[str]) -> bytes | None:
    """The file with more values of its graph as outputs; None where it has no such values.

    External data stays where it lies: see `reads_beside`.
    """
    proto = read_proto(path)
    if not set(names) <= {output for node in proto.graph.node for output in node.output}:
        return None
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    found: bytes = proto.SerializeToString()
    return found


def load_file(path: Path, *, lean: bool = False) -> None:
    """Raises ModelFileError: ONNX Runtime does not load the file, with its fusions or without. lean: without alone."""
    try:
        _open(path, lean=lean)
    except Exception as error:  # as above
        try:
            _open(path, fused=False, lean=lean)
        except Exception:  # as above
            raise ModelFileError(f"ONNX Runtime refuses {path}: {reason_of(error)}") from error


def _open(path: Path, *, fused: bool = True, lean: bool = False) -> Any:
    import onnxruntime

    options = lean_options() if lean else session_options()
    if not fused and not lean:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _element_type(text: str) -> int:
    """ONNX's number of "tensor(float16)"."""
    kind = text.removeprefix("tensor(").removesuffix(")")
    return int(onnx.TensorProto.DataType.Value({"double": "DOUBLE"}.get(kind, kind).upper()))


def _run(session: Any, feeds: Feeds, types: dict[str, int]) -> Outputs:
    outputs: Outputs = session.run(None, as_types(feeds, types))
    return outputs


def as_types(feeds: Feeds, types: dict[str, int]) -> Feeds:
    """Arrays in the types that the file's inputs have."""
    return {
        name: array.astype(ir.DataType(types[name]).numpy(), copy=False) if name in types else array
        for name, array in feeds.items()
    }


def _is_free(
    session: Any, types: dict[str, int], model: ir.Model, feeds: Sequence[Feeds], outputs: Sequence[Outputs]
) -> bool:
    """Whether the file computes the same for samples side by side: it may say so, and hold one batch all the same."""
    axes = {spec.name: spec.batch_axis for spec in inputs(model) if spec.batch_axis is not None}
    try:
        found = _run(session, joined_feeds(feeds, axes), types)
    except Exception:  # as above
        return False
    return all(stacked(*pair) for pair in zip(found, zip(*outputs, strict=True), strict=True))


def _refuse_not_finite(path: Path, model: ir.Model, runs: Sequence[Outputs]) -> None:
    for place, value in enumerate(model.graph.outputs):
        if is_float(value) and all(not np.isfinite(_as_float(outputs[place])).all() for outputs in runs):
            raise ModelFileError(
                f"{path} computes NaN or infinity at its output {name_of(value)!r} on ordinary inputs, so there is "
                "nothing to compress; look for weights or statistics that are not sound."
            )


def _as_float(output: Any) -> Any:
    return np.asarray(output).astype(np.float64) if isinstance(output, np.ndarray) else np.zeros(0)
