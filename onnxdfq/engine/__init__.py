"""An ONNX graph as a differentiable torch module, with taps on named values.

graph.py      TorchGraph: initializers as parameters, forward, stream, write_back
operation.py  the nodes of a graph, each with the function that computes it
plan.py       one plan per input shape: shape arithmetic is done once, what remains is a flat list of steps
host.py       the inputs that torch wants as Python numbers, declared by annotation
quant.py      QuantizeLinear and DequantizeLinear with straight-through gradients
runtime.py    operators that ONNX Runtime computes, for the last bits of its results
fallback.py   nodes that the engine has no function for, run by ONNX Runtime
feeds.py      tensors for the inputs of a model, from images
cache.py      memory for values over all images
precision.py  the floating-point type to compute in
dtypes.py     ONNX element types and the torch types that carry them
ops/          one function per operator, named as the operator, and their table
"""

from onnxdfq.engine.graph import TorchGraph
from onnxdfq.engine.operation import Replacement
from onnxdfq.engine.ops import OPERATORS

SUPPORTED_OPERATORS: frozenset[str] = frozenset(OPERATORS)
"""Names of the operators of the default ONNX domain that `TorchGraph` runs."""

__all__ = ["SUPPORTED_OPERATORS", "Replacement", "TorchGraph"]
