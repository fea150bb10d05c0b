"""Reading and writing model files.

`Opening` and `load_model` read a float model that is to be compressed: checked, run in ONNX Runtime, then brought to
one opset, simplified once, its batch free. `read_model` reads any model unchanged, quantized ones too, with the same
safety checks. Either does so in a process of its own (`tasks`). `save_model` and `atomic_write` never leave a
half-written file.
"""

from onnxdfq.model_file.filling import Filling, fillings, given_by_user, parse_fillings
from onnxdfq.model_file.inputs import InputSpec, batch_of, inputs, main_input
from onnxdfq.model_file.opening import Opened, Opening, blaming, load_model, read_model
from onnxdfq.model_file.saving import is_large, save_model
from onnxdfq.model_file.sizes import parse_input_shapes
from onnxdfq.model_file.writing import atomic_write, check_writable

__all__ = [
    "Filling",
    "InputSpec",
    "Opened",
    "Opening",
    "atomic_write",
    "batch_of",
    "blaming",
    "check_writable",
    "fillings",
    "given_by_user",
    "inputs",
    "is_large",
    "load_model",
    "main_input",
    "parse_fillings",
    "parse_input_shapes",
    "read_model",
    "save_model",
]
