"""One error tree.

    DfqError                      everything that onnxdfq raises on purpose
    ├── InputError                what the user gave cannot be used (exit code 2)
    │   ├── ModelFileError        not ONNX, truncated, external data missing or outside the model's folder
    │   ├── UnsupportedOperator   the engine has no such operator; names operator, domain and node
    │   ├── NoBatchNorm           the method needs BatchNormalization and the model has none
    │   ├── NoAttention           the method reads what a transformer attends to and the model does not attend
    │   ├── AlreadyQuantized      the model already holds Quantize/Dequantize nodes
    │   ├── ShapeError            an input shape is unknown, or zero
    │   └── DataError             images or labels that cannot be used
    ├── WorkerError               one of several processes failed, hangs or does not fit (exit code: its own)
    └── OutputError               the result could not be written (exit code 2: the path is at fault, 1: the disk)

Messages are one sentence or two: what was found, what is allowed, what to do. What they quote of a file is escaped.
"""

from onnxdfq.shown import sentence


class DfqError(Exception):
    """Whatever onnxdfq raises on purpose is one of these.

    exit_code: what the command line ends with. field: the field of a recipe, or the argument, that is at fault, where
    it is one; the command line calls it by its flag.
    """

    exit_code = 1

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(sentence(message))
        self.field = field


class InputError(DfqError):
    """What the user gave cannot be used."""

    exit_code = 2


class ModelFileError(InputError):
    """The file is not a model that can be read."""


class UnsupportedOperator(InputError):
    """The engine has no such operator."""


class NoBatchNorm(InputError):
    """The method reads BatchNormalization statistics and the model carries none."""


class NoAttention(InputError):
    """The method reads what a transformer attends to and the model does not attend."""


class AlreadyQuantized(InputError):
    """The model already holds QuantizeLinear, DequantizeLinear or integer operators."""


class ShapeError(InputError):
    """An input shape is unknown or empty."""


class DataError(InputError):
    """Images or labels that cannot be used."""


class WorkerError(DfqError):
    """One of several processes failed, hangs, or does not fit the others."""

    def __init__(self, message: str, *, exit_code: int = 1, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.exit_code = exit_code


class OutputError(DfqError):
    """The result could not be written."""

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
