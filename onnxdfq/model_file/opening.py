"""The doors of this package: models are read, run, converted and simplified in a process of their own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxdfq.errors import DfqError, ModelFileError
from onnxdfq.model_file.handover import take_over
from onnxdfq.model_file.reference import MADE, Reference
from onnxdfq.model_file.runtime import named_libraries
from onnxdfq.model_file.stages import CONVERTING
from onnxdfq.sandbox import Call, Ended, Limits
from onnxdfq.scratch import scratch_folder

_PROGRAM = "onnxdfq.model_file.tasks"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A float model that can be worked on.

    Attributes:
        model: Float32, opset 21 to 25, simplified once, batch free.
        reference: How its file is run.
        file: What to run for it: the file, or its bytes with more outputs.
    """

    model: ir.Model
    reference: Reference
    file: Path | bytes


class Opening:
    """A float model that is being read, run, converted and simplified; a context manager, whose end gives it up.

    Args:
        path: Of the file.
        input_shape: By input name ("" for the main input), for inputs whose sizes the file leaves open.
        data: Shapes of arrays at hand, by input name, from which such sizes follow too.
        fed: By input name, what inputs are fed where nobody gives data (`--input`).
    """

    def __init__(
        self,
        path: Path | str,
        *,
        input_shape: Mapping[str, Sequence[int]] | None = None,
        data: Mapping[str, Sequence[int]] | None = None,
        fed: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        self._arguments = {"input_shape": _lists(input_shape), "data": _lists(data), "fed": dict(fed or {})}
        self._stack = ExitStack()

    def __enter__(self) -> "Opening":
        self._folder = self._stack.enter_context(scratch_folder())
        self._task = self._stack.enter_context(_Task("open_float", self.path, self._folder, self._arguments))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self) -> None:
        """Waits until the file is found fit to be compressed.

        Raises:
            ModelFileError, AlreadyQuantized, UnsupportedOperator, ShapeError, InputError: As `load_model` does.
        """
        self._task.reached(CONVERTING)

    def opened(self) -> Opened:
        """Waits until the model is ready. Raises ModelFileError where it cannot be converted, and as `check` does."""
        reference = Reference(**self._task.result())
        made = self._folder / MADE
        return Opened(
            model=take_over(self._folder, self.path),
            reference=reference,
            file=made.read_bytes() if made.exists() else self.path,
        )


def load_model(
    path: Path | str,
    *,
    input_shape: Mapping[str, Sequence[int]] | None = None,
    data: Mapping[str, Sequence[int]] | None = None,
    fed: Mapping[str, str] | None = None,
) -> ir.Model:
    """A float model to compress: checked, float32, opset 21 to 25, simplified once, batch free.

    Values and nodes that remain keep the file's names. Where weights exceed 2 GB they stay on the disk until used, and
    the model is neither simplified nor its batch freed, for both need the whole model in one protobuf.
    BatchNormalizations are kept. `declared_shapes` tells the boundary of the file.

    Args:
        path, input_shape, data, fed: As for `Opening`.

    Raises:
        ModelFileError: The file cannot be read, is damaged, of an opset that is not read, or ONNX Runtime does not run
            it.
        AlreadyQuantized: It holds quantized operators.
        UnsupportedOperator: It holds an operator that ONNX itself lacks.
        ShapeError: An input's sizes stay open, are beyond all bounds, or `input_shape` contradicts them.
        InputError: `fed` names no input, or says what none can be fed.
    """
    with Opening(path, input_shape=input_shape, data=data, fed=fed) as opening:
        return opening.opened().model


def read_model(path: Path | str, *, inferred: bool = False, run: bool = False) -> ir.Model:
    """Any model unchanged, quantized ones too, after the safety checks: for `inspect`, `lint` and `evaluate`.

    Args:
        path: Of the file.
        inferred: Whether its functions are inlined, and the shapes of its values inferred.
        run: Whether ONNX Runtime has to load it.

    Raises:
        ModelFileError: The file cannot be read, is damaged, or, with `run`, ONNX Runtime refuses it.
        UnsupportedOperator: It holds an operator that ONNX itself lacks.
    """
    arguments = {"inferred": inferred, "run": run}
    with scratch_folder() as folder, _Task("read_any", Path(path), folder, arguments) as task:
        task.result()
        return take_over(folder, Path(path))


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Where the block fails as nobody foresaw and ONNX Runtime refuses the file, the file is at fault.

    Raises:
        ModelFileError: ONNX Runtime refuses it.
    """
    try:
        yield
    except DfqError:
        raise
    except Exception:
        read_model(path, run=True)
        raise


class _Task:
    """One task on a file; its end by its limits is a sentence about the file."""

    def __init__(self, name: str, path: Path, folder: Path, arguments: Mapping[str, Any]) -> None:
        self._path, self._limits = path, Limits()
        given = {"path": str(path), "folder": str(folder), "libraries": named_libraries(), **arguments}
        self._call = Call(_PROGRAM, name, given, self._limits)

    def __enter__(self) -> "_Task":
        self._call.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._call.__exit__()

    def reached(self, stage: str) -> None:
        try:
            self._call.reached(stage)
        except Ended as ended:
            raise ModelFileError(_sentence(self._path, ended)) from ended

    def result(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._call.result()
        except Ended as ended:
            raise ModelFileError(_sentence(self._path, ended)) from ended
        return found


def _sentence(path: Path, ended: Ended) -> str:
    doing = ended.stage or "reading it"
    match ended.how:
        case "memory":
            return (
                f"{path} is refused: {doing} takes more memory than a model of its size should need; look for shapes "
                "and constants of huge sizes."
            )
        case "time":
            return (
                f"{path} is refused: {doing} comes to no end in the time that a model of its size should need; look "
                "for a Loop without end, for functions that call each other, and for thousands of nodes with names of "
                "hundreds of letters, which take ONNX Runtime minutes."
            )
        case _:
            return (
                f"{path} is refused: {doing} ended the process that did it ({ended.signal}); the file is damaged, or "
                "made to do harm. Export it again."
            )


def _lists(shapes: Mapping[str, Sequence[int]] | None) -> dict[str, list[int]]:
    return {name: list(map(int, shape)) for name, shape in (shapes or {}).items()}
