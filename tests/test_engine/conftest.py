"""Models from text."""

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import pytest

MakeModel = Callable[..., ir.Model]


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """`make_model(text, arrays, opset=21)`: a model from ONNX text; inputs that `arrays` names become initializers."""

    def make(text: str, arrays: Mapping[str, np.ndarray] | None = None, *, opset: int = 21) -> ir.Model:
        model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
        inputs = {value.name: value for value in model.graph.inputs}
        for name, array in (arrays or {}).items():
            value = inputs[name]
            assert value.dtype is not None
            value.const_value = ir.Tensor(np.asarray(array, value.dtype.numpy()), dtype=value.dtype, name=name)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
        return model

    return make
