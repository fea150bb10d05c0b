"""What of a student stands against what of its teacher: inputs, outputs, and inner values of equal shapes."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxdfq.errors import InputError, ShapeError
from onnxdfq.model_file import InputSpec, batch_of, inputs
from onnxdfq.training.levels import feature_levels
from onnxdfq.training.outputs import distilled_outputs
from passes.graph.editing import name_of

Size = int | None


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Names of values, the student's in the order of the teacher's.

    inputs: the student's, in the order of the teacher's graph inputs. outputs, student_outputs: of both, before their
    softmax. classes: whether each scores classes. taps, student_taps: inner values of equal shapes.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    student_outputs: tuple[str, ...]
    classes: tuple[bool, ...]
    taps: tuple[str, ...] = ()
    student_taps: tuple[str, ...] = ()


def match(teacher: ir.Model, student: ir.Model, *, features: bool = True) -> Matching:
    """Which values of both networks are compared.

    Args:
        teacher: Canonical and float; shapes are inferred.
        student: Float; likewise.
        features: Whether inner values are.

    Raises:
        ShapeError: They take inputs, or give outputs, of other numbers or shapes.
        InputError: They run at other numbers of samples.
    """
    names = _matched_inputs(inputs(teacher), inputs(student))
    if batch_of(teacher) != batch_of(student):
        one, other = (f"{size} at a time" if size else "any number" for size in map(batch_of, (teacher, student)))
        raise InputError(f"The teacher takes {one} of samples and the student {other}; export both with a free batch.")
    _check_outputs(teacher.graph.outputs, student.graph.outputs)
    wanted, found = distilled_outputs(teacher.graph), distilled_outputs(student.graph)
    shapes, own = _shapes(teacher), _shapes(student)
    if len(wanted) != len(found) or not all(
        _fit(shapes.get(a.name), own.get(b.name)) for a, b in zip(wanted, found, strict=False)
    ):
        raise ShapeError("The outputs of teacher and student are computed from values of other shapes.")
    pairs = _paired_levels(teacher, student) if features else []
    return Matching(
        inputs=names,
        outputs=tuple(output.name for output in wanted),
        student_outputs=tuple(output.name for output in found),
        classes=tuple(output.classes for output in wanted),
        taps=tuple(tap for tap, _ in pairs),
        student_taps=tuple(tap for _, tap in pairs),
    )


def _matched_inputs(wanted: Sequence[InputSpec], found: Sequence[InputSpec]) -> tuple[str, ...]:
    if len(wanted) != len(found):
        raise ShapeError(
            f"The teacher has {_counted(len(wanted), 'input')} and the student {len(found)}; what the teacher is fed "
            "has to fit the student."
        )
    if len(wanted) > 1:
        by_name = {spec.name: spec for spec in found}
        if missing := [spec.name for spec in wanted if spec.name not in by_name]:
            raise ShapeError(f"The student has no input {missing[0]!r}, as the teacher has; several go by their names.")
        found = [by_name[spec.name] for spec in wanted]
    for one, other in zip(wanted, found, strict=True):
        same = one.dtype == other.dtype and one.batch_axis == other.batch_axis
        if not same or not _fit(one.sample_shape, other.sample_shape):
            raise ShapeError(
                f"The teacher's input {one.name!r} takes {one.dtype.name.lower()} {one.text()} and the student's "
                f"{other.name!r} {other.dtype.name.lower()} {other.text()}; what the teacher is fed has to fit the "
                "student."
            )
    return tuple(spec.name for spec in found)


def _check_outputs(wanted: Sequence[ir.Value], found: Sequence[ir.Value]) -> None:
    if len(wanted) != len(found):
        raise ShapeError(
            f"The teacher has {_counted(len(wanted), 'output')} and the student {len(found)}; each output of the "
            "teacher needs one that learns it."
        )
    for one, other in zip(wanted, found, strict=True):
        if not _fit(_sizes(one), _sizes(other)):
            raise ShapeError(
                f"The teacher's output {name_of(one)!r} is {_text(one)} and the student's {name_of(other)!r} "
                f"{_text(other)}; they have to be of one shape."
            )


def _paired_levels(teacher: ir.Model, student: ir.Model) -> list[tuple[str, str]]:
    """Of each of the teacher's levels the student's of its name, else its first, among those of the same shape."""
    shapes, own = _shapes(teacher), _shapes(student)
    left = [level for level in feature_levels(student) if level in own]
    pairs = []
    for level in feature_levels(teacher):
        fitting = [tap for tap in left if level in shapes and own[tap][1:] == shapes[level][1:]]
        if fitting and None not in shapes[level][1:]:
            tap = level if level in fitting else fitting[0]
            left.remove(tap)
            pairs.append((level, tap))
    return pairs


def _shapes(model: ir.Model) -> dict[str, tuple[Size, ...]]:
    values = (value for node in model.graph for value in node.outputs)
    return {name_of(value): sizes for value in values if (sizes := _sizes(value)) is not None}


def _sizes(value: ir.Value) -> tuple[Size, ...] | None:
    return None if value.shape is None else tuple(size if isinstance(size, int) else None for size in value.shape)


def _fit(one: Sequence[Size] | None, other: Sequence[Size] | None) -> bool:
    """Whether two shapes may be one; an open size may be any."""
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(a == b or None in (a, b) for a, b in zip(one, other, strict=True))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _text(value: ir.Value) -> str:
    sizes = _sizes(value)
    return "of an unknown shape" if sizes is None else "×".join("N" if size is None else str(size) for size in sizes)
