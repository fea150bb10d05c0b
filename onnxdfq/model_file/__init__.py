"""Reading and writing model files.

`load_model` reads a float model that is to be compressed: checked (`read_float_model`), then brought to one opset,
simplified once, its batch free (`prepare_model`). `read_model` reads any model unchanged, quantized ones too, with the
same safety checks. `save_model` and `atomic_write` never leave a half-written file.
"""

from onnxdfq.model_file.filling import Filling, fillings, given_by_user, parse_fillings
from onnxdfq.model_file.inputs import InputSpec, batch_of, inputs, main_input
from onnxdfq.model_file.loading import load_model, prepare_model, read_float_model, read_model
from onnxdfq.model_file.saving import is_large, save_model
from onnxdfq.model_file.sizes import parse_input_shapes
from onnxdfq.model_file.untrusted import model_hash
from onnxdfq.model_file.writing import atomic_write, check_writable

__all__ = [
    "Filling",
    "InputSpec",
    "atomic_write",
    "batch_of",
    "check_writable",
    "fillings",
    "given_by_user",
    "inputs",
    "is_large",
    "load_model",
    "main_input",
    "model_hash",
    "parse_fillings",
    "parse_input_shapes",
    "prepare_model",
    "read_float_model",
    "read_model",
    "save_model",
]
