"""A student's own file: what trains of it, and how what was trained comes back into it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdfq.errors import InputError
from onnxdfq.model_file import Opening, read_model
from onnxdfq.model_file.loading import CONVERTED
from onnxdfq.training.float_student import batch_norms
from onnxdfq.training.parameters import trainable_initializers
from passes.write.provenance import WriteProvenance, read_provenance
from passes.write.write_initializers import WriteInitializers, named_constants

KEPT = ("pruned", "repair")
"""What stays true of a student that learns."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StudentFile:
    """A student, twice.

    file: as it lies there. model: as it is computed and trained, of a current opset. digest: SHA-256 of the file.
    names: constants of `model` that are constants of `file`, by the same name and of the same numbers: these may
    change. fixed: parameters that the file computes from others, and so stay.
    """

    file: ir.Model
    model: ir.Model
    digest: str
    names: frozenset[str]
    fixed: tuple[str, ...]

    @property
    def pruned(self) -> bool:
        """Whether onnxdfq pruned it."""
        return "pruned" in read_provenance(self.file)

    def trained(self, provenance: Mapping[str, str]) -> ir.Model:
        """The file's own graph with the numbers that `model` holds now, and nothing else of it changed.

        provenance: What is written into its metadata, beside what is known of its pruning.
        """
        found, now, before = self.file.clone(), named_constants(self.model), named_constants(self.file)
        changed = [name for name in sorted(self.names) if not _same(now[name], before[name])]
        WriteInitializers({name: now[name] for name in changed})(found)
        kept = {key: value for key, value in read_provenance(self.file).items() if key in KEPT}
        WriteProvenance({**provenance, **kept})(found)
        return found


def open_student(path: Path, *, input_shape: Mapping[str, Sequence[int]]) -> StudentFile:
    """Read a student, which runs in a process of its own as every model does.

    Args:
        path: Of its file.
        input_shape: As for `Opening`.

    Raises:
        ModelFileError, AlreadyQuantized, UnsupportedOperator, ShapeError: as `load_model`.
        InputError: It is of another float type, or holds no weights that train.
    """
    with Opening(path, input_shape=input_shape) as opening:
        opened = opening.opened()
    if (given := opened.model.metadata_props.get(CONVERTED)) is not None:
        raise InputError(f"{path} is of {given}, and a student trains in float32; convert it, or export it so.")
    file = read_model(path)
    known, model = named_constants(file), opened.model
    names = {name for name, array in named_constants(model).items() if _same(array, known.get(name))}
    parameters = trainable_initializers(model)
    if not names.intersection(parameters):
        raise InputError(
            f"{path} has no trainable weights: a student needs layers whose weights are float32 initializers."
        )
    statistics = [name for norm in batch_norms(model, model.graph.initializers) for name in (norm.mean, norm.var)]
    return StudentFile(
        file=file,
        model=model,
        digest=opened.reference.digest,
        names=frozenset(names),
        fixed=tuple(name for name in (*parameters, *statistics) if name not in names),
    )


def _same(array: NDArray[np.float32], other: NDArray[np.float32] | None) -> bool:
    return other is not None and array.shape == other.shape and array.tobytes() == other.tobytes()
