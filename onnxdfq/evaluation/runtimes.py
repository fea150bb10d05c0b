"""One file in several runtimes: how far their outputs lie apart, in steps of the output."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from onnxdfq.engine import TorchGraph
from onnxdfq.errors import InputError, ModelFileError
from onnxdfq.evaluation.evaluation import load_evaluation_data
from onnxdfq.evaluation.session import Session
from onnxdfq.images.feeding import Feeding
from onnxdfq.model_file import read_model
from onnxdfq.model_file.runtime import reason_of, session_options
from onnxdfq.progress import Progress
from onnxdfq.recipe.names import one_of
from passes.graph.compared import answer_output, is_float
from passes.graph.editing import constant_value, is_op, name_of

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]  # inputs by name → float outputs by name
REFERENCE = "ort-unoptimised"
FLOAT_STEPS = 256  # of an output that is float, from 0 to its greatest magnitude
BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class RuntimeDifference:
    """How far a runtime is from ONNX Runtime without its optimisations, which computes what the file says operator by
    operator.

    runtime: its name. steps: the greatest difference of any number of any output, in steps of that output's grid; of an
    output that is float, in 256ths of its greatest magnitude. share: of the numbers, those that lie half a step or more
    apart. answers: share of equal classes; None where no output tells classes apart.
    """

    runtime: str
    steps: float
    share: float
    answers: float | None


def compare_runtimes(
    path: Path, source: Any, runtimes: Sequence[str], *, normalize: str | None = None, progress: Progress | None = None
) -> tuple[RuntimeDifference, ...]:
    """Run a file on data in each runtime.

    Args:
        path: of the file.
        source: whatever `onnxdfq.images.dataset.load_data` reads.
        runtimes: keys of RUNTIMES.
        normalize: as for `load_evaluation_data`.
        progress: called after each batch.

    Raises:
        InputError: a name is none, or the runtime is not installed. ModelFileError: it refuses the file.
    """
    for name in runtimes:
        one_of("runtime", name, RUNTIMES, field="runtime")
    loader = Session(path)
    data = load_evaluation_data(source, loader, normalize)
    model = read_model(path, run=True)
    feeding = Feeding(model)
    size = feeding.run_size(next(data.samples(2)), BATCH_SIZE)
    outputs = [value for value in model.graph.outputs if is_float(value)]
    place = answer_output(model.graph)
    answer = None if place is None else name_of(model.graph.outputs[place])
    reference = _opened(REFERENCE, path, model)
    others = {name: _opened(name, path, model) for name in dict.fromkeys(runtimes)}
    scores = {name: _Score(steps=_steps(outputs), answer=answer) for name in others}
    done = 0
    for samples in data.samples(size):
        if len(samples) < size and feeding.batch is not None:
            break  # a model of one batch, and samples that do not fill it
        arrays = feeding.arrays(samples)
        expected = reference(arrays)
        for name, run in others.items():
            scores[name].add(expected, run(arrays))
        done += len(samples)
        if progress is not None:
            progress(done, len(data), "comparing runtimes")
    return tuple(score.difference(name) for name, score in scores.items())


@dataclass(kw_only=True)
class _Score:
    """What was seen so far of one runtime. steps: by output, the step of its grid, None of a float one."""

    steps: Mapping[str, NDArray[np.float64] | None]
    answer: str | None
    greatest: dict[str, float] = field(default_factory=dict)
    magnitude: dict[str, float] = field(default_factory=dict)
    apart: int = 0
    numbers: int = 0
    equal: int = 0
    answers: int = 0

    def add(self, expected: Arrays, found: Arrays) -> None:
        """Take in one batch."""
        for name, step in self.steps.items():
            exact, other = (np.asarray(arrays[name], np.float64) for arrays in (expected, found))
            self.magnitude[name] = max(self.magnitude.get(name, 0.0), float(np.abs(exact).max(initial=0)))
            unit = np.asarray(self.magnitude[name] / FLOAT_STEPS or 1.0) if step is None else step
            distance = np.abs(other - exact) / unit
            greatest = float(np.abs(other - exact).max(initial=0)) if step is None else float(distance.max(initial=0))
            self.greatest[name] = max(self.greatest.get(name, 0.0), greatest)
            self.apart += int((distance >= 0.5).sum())
            self.numbers += distance.size
        if self.answer is not None and self.answer in expected:
            classes = [np.asarray(arrays[self.answer]) for arrays in (expected, found)]
            chosen = [one.argmax(axis=min(1, one.ndim - 1)) for one in classes]
            self.equal += int((chosen[0] == chosen[1]).sum())
            self.answers += chosen[0].size

    def difference(self, runtime: str) -> RuntimeDifference:
        """What it comes to."""
        greatest = [
            value if self.steps[name] is not None else value * FLOAT_STEPS / (self.magnitude[name] or 1.0)
            for name, value in self.greatest.items()
        ]
        return RuntimeDifference(
            runtime=runtime,
            steps=max(greatest, default=0.0),
            share=self.apart / max(self.numbers, 1),
            answers=self.equal / self.answers if self.answers else None,
        )


def _steps(outputs: Sequence[ir.Value]) -> dict[str, NDArray[np.float64] | None]:
    """By output, the scale of the DequantizeLinear that gives it, where one for all its numbers does."""
    found: dict[str, NDArray[np.float64] | None] = {}
    for value in outputs:
        producer = value.producer()
        scale = constant_value(producer.inputs[1]) if producer and is_op(producer, "DequantizeLinear") else None
        found[name_of(value)] = None if scale is None or scale.size != 1 else scale.astype(np.float64).reshape(())
    return found


def _opened(name: str, path: Path, model: ir.Model) -> Run:
    try:
        return RUNTIMES[name](path, model)
    except InputError:
        raise
    except Exception as error:  # every runtime has exceptions of its own
        raise ModelFileError(f"{name} refuses {path}: {reason_of(error)}") from error


def _onnx_runtime(path: Path, model: ir.Model, *, optimised: bool) -> Run:
    options = session_options()
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda arrays: dict(zip(names, session.run(names, dict(arrays)), strict=True))


def _openvino(path: Path, model: ir.Model) -> Run:
    try:
        import openvino
    except ImportError as error:
        raise InputError("OpenVINO is not installed: pip install openvino.", field="runtime") from error
    # what the file leaves in float is float32, whatever the processor has beside it
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [name_of(value) for value in model.graph.outputs]

    def run(arrays: Arrays) -> Arrays:
        results = compiled(dict(arrays))
        return {name: results[place] for place, name in enumerate(names)}

    return run


def _engine(path: Path, model: ir.Model) -> Run:
    graph = TorchGraph(model).eval()

    def run(arrays: Arrays) -> Arrays:
        with torch.no_grad():
            results = graph(*(torch.from_numpy(np.array(arrays[name])) for name in graph.input_names))
        return {name: result.numpy() for name, result in zip(graph.output_names, results, strict=True)}

    return run


RUNTIMES: Mapping[str, Callable[[Path, ir.Model], Run]] = {
    "ort": lambda path, model: _onnx_runtime(path, model, optimised=True),
    "ort-unoptimised": lambda path, model: _onnx_runtime(path, model, optimised=False),
    "openvino": _openvino,
    "engine": _engine,
}
