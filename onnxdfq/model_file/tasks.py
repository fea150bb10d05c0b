"""What is done with a stranger's file, in the process that may fall over it: the program that `opening` calls.

`python -m onnxdfq.model_file.tasks FD` serves these tasks until its caller is gone.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import wraps
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxdfq.errors import DfqError
from onnxdfq.model_file.handover import hand_over
from onnxdfq.model_file.loading import inline_functions, prepare_model, read_any_model, read_float_model
from onnxdfq.model_file.reference import MADE, inner_values, load_file, run_file, with_outputs
from onnxdfq.model_file.runtime import op_libraries
from onnxdfq.model_file.saving import runs_lean
from onnxdfq.model_file.stages import CONVERTING, READING, RUNNING
from onnxdfq.model_file.through_proto import infer_shapes
from onnxdfq.model_file.untrusted import bytes_in, files_of, hash_of
from onnxdfq.sandbox import Limits, Stage, serve

TIMES_ITS_SIZE = 6  # of memory that a large model gets: protobufs, sessions and weights in several forms
SECONDS_PER_MEGABYTE = 1
NODES_PER_SECOND = 100  # converting a chain of 10,000 layers, BatchNormalizations and Relus takes half of that
BYTES_OF_NODE = 20  # with names of a few letters
MOST_FOR_NODES = 300  # seconds


def blaming_the_file(task: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Where the task fails as nobody foresaw: a file that ONNX Runtime refuses is at fault itself, any other is not."""

    @wraps(task)
    def run(stage: Stage, path: str, *, libraries: Sequence[str], **arguments: Any) -> dict[str, Any]:
        with op_libraries(libraries):
            try:
                return task(stage, Path(path), **arguments)
            except (DfqError, MemoryError):
                raise
            except Exception:
                stage(RUNNING)
                load_file(Path(path))
                raise

    return run


@blaming_the_file
def open_float(
    stage: Stage,
    path: Path,
    *,
    folder: str,
    input_shape: Mapping[str, Sequence[int]],
    data: Mapping[str, Sequence[int]],
    fed: Mapping[str, str],
) -> dict[str, Any]:
    """`read_float_model`, `run_file`, `prepare_model`. Returns the `Reference` in plain values.

    Args:
        stage: Told what goes on.
        path: Of the file.
        folder: Empty, for the model (`hand_over`) and the reference.
        input_shape, data, fed: As for `load_model`.
    """
    stage(READING)
    files = make_room(path)
    model = read_float_model(path, input_shape=input_shape, data=data, fed=fed)
    limits_of(bytes_in(files), _nodes_of(model)).apply()
    stage(RUNNING)
    reference = run_file(path, model)
    stage(CONVERTING)
    model = prepare_model(model, path)
    if reference.own and (inner := inner_values(model)):
        made = with_outputs(path, inner)
        if made is None:
            reference = replace(reference, own=False, why="What is compared lies inside one of its functions.")
        else:
            (Path(folder) / MADE).write_bytes(made)
    hand_over(model, Path(folder))
    return asdict(replace(reference, digest=hash_of(files)))


@blaming_the_file
def read_any(stage: Stage, path: Path, *, folder: str, inferred: bool, run: bool) -> dict[str, Any]:
    """`read_any_model`.

    Args:
        stage: Told what goes on.
        path: Of the file.
        folder: Empty, for the model.
        inferred: Whether functions are inlined and shapes inferred.
        run: Whether ONNX Runtime has to load it.
    """
    stage(READING)
    files = make_room(path)
    model = read_any_model(path)
    limits_of(bytes_in(files), _nodes_of(model)).apply()
    if inferred:
        inline_functions(model, path)
        infer_shapes(model, strict=False, bodies=True)
    if run:
        stage(RUNNING)
        load_file(path, lean=runs_lean(model))
    hand_over(model, Path(folder))
    return {}


def make_room(path: Path) -> list[Path]:
    """Limits for reading a file: by its own size first, then by that of its weights, which only it can tell. The file
    and those of its weights."""
    limits_for(path).apply()
    files = files_of(path)
    limits_of(bytes_in(files), path.stat().st_size // BYTES_OF_NODE).apply()
    return files


def limits_for(path: Path) -> Limits:
    """More of everything for a file that is large itself, and more time for as many nodes as may fit into it."""
    size = 0
    with suppress(OSError, ValueError):  # reading it will say why
        size = path.stat().st_size
    return limits_of(size, size // BYTES_OF_NODE)


def _nodes_of(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())


def limits_of(size: int, nodes: int) -> Limits:
    """For so many bytes, and so many nodes."""
    least = Limits()
    return replace(
        least,
        memory=max(least.memory, TIMES_ITS_SIZE * size),
        seconds=least.seconds + SECONDS_PER_MEGABYTE * size // 2**20 + min(nodes // NODES_PER_SECOND, MOST_FOR_NODES),
        file_size=max(least.file_size, TIMES_ITS_SIZE * size),
    )


TASKS: Mapping[str, Callable[..., Any]] = {"open_float": open_float, "read_any": read_any}


def _warm_up() -> None:
    """What libraries do at their first call, a fifth of what a small file takes: once, and not in every fork."""
    import onnxruntime  # noqa: F401

    sys.modules["torch"] = None  # type: ignore[assignment]  # onnxsim imports it for what nobody uses here
    import onnxsim

    text = '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
    model = onnx.parser.parse_model(text)
    onnx.shape_inference.infer_shapes(model)
    onnx.version_converter.convert_version(model, 21)
    onnxsim.simplify(model)


if __name__ == "__main__":
    _warm_up()
    serve(TASKS, int(sys.argv[1]))
