"""Nodes that the engine has no function for, run by ONNX Runtime: recurrent layers, control flow, other domains.

Such a node stays float and lets no gradient through; everything else about it is as about any other node. What it
computes may be of a type that torch lacks (a sequence, text): it is handed on as ONNX Runtime gives it, to the next
such node.
"""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor

from onnxdfq.engine.dtypes import TORCH_DTYPES, from_numpy, to_numpy
from onnxdfq.errors import UnsupportedOperator
from onnxdfq.model_file.runtime import session_options
from passes.graph.bodies import captured_values
from passes.graph.editing import name_of

OWN_DOMAINS = ("", "ai.onnx")


def carried(node: ir.Node) -> bool:
    """Whether torch has types for all that a node reads and computes, as far as these are known."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    return all(
        (value.dtype is None or value.dtype in TORCH_DTYPES)
        and (value.type is None or isinstance(value.type, ir.TensorType))
        for value in values
    )


class InRuntime:
    """Calls one node in ONNX Runtime.

    Args:
        node: Of any domain that ONNX Runtime knows.
        given: Names of values that the caller passes although the graph has them as constants.

    Attributes:
        inputs: Names of the values to pass: what the node reads, and what its subgraphs read of the graph around;
            constants are a part of it.
    """

    def __init__(self, node: ir.Node, given: frozenset[str] = frozenset()) -> None:
        assert node.graph is not None
        self._label = f"{node.op_type} node {node.name or name_of(node.outputs[0])!r}"
        read = dict.fromkeys([*(value for value in node.inputs if value is not None), *captured_values(node)])
        constant = {value: value.const_value for value in read if value.is_initializer() and value.name not in given}
        self._node = ir.serde.serialize_node(node)
        self._opsets = dict(node.graph.opset_imports) or {"": 21}
        self._constants = [
            _named(ir.serde.serialize_tensor(tensor), name_of(value))
            for value, tensor in constant.items()
            if tensor is not None
        ]
        passed = [value for value in read if value not in constant]
        self.inputs = tuple(map(name_of, passed))
        self._types = [value.dtype for value in passed]
        self._infos = [_info(value) for value in passed]
        self._outputs = [_info(value) for value in node.outputs if value.name]
        self._places = [place for place, value in enumerate(node.outputs) if value.name]
        self._count = len(node.outputs)
        self._made: onnxruntime.InferenceSession | None = None

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        """The node's outputs; torch tensors where torch has the type."""
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        device = tensors[0].device if tensors else torch.device("cpu")
        values = [_handed(argument, dtype) for argument, dtype in zip(arguments, self._types, strict=True)]
        try:
            session = self._session(values)
            names = [info.name for info in self._outputs]
            found = session.run_with_ort_values(names, dict(zip(self.inputs, values, strict=True)))
        except Exception as error:  # onnxruntime's own exceptions share no base class but this
            reason = str(error).strip().splitlines()[0]
            raise UnsupportedOperator(
                f"{self._label}: the engine has no operator {self._node.op_type!r} of domain "
                f"{self._node.domain or 'ai.onnx'!r}, and ONNX Runtime does not run it: {reason}"
            ) from error
        results: list[Any] = [None] * self._count
        for place, result in zip(self._places, found, strict=True):
            results[place] = _taken(result, device)
        return tuple(results)

    def _session(self, values: list[onnxruntime.OrtValue]) -> onnxruntime.InferenceSession:
        if self._made is None:
            for info, value in zip(self._infos, values, strict=True):
                if not info.HasField("type"):
                    info.type.tensor_type.elem_type = value.element_type()
            graph = onnx.helper.make_graph([self._node], "node", self._infos, self._outputs, self._constants)
            opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in self._opsets.items()]
            model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
            options = session_options()
            options.intra_op_num_threads = torch.get_num_threads()
            data = model.SerializeToString()
            self._made = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return self._made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}  # made anew in a copy


def _named(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    tensor.name = name  # a tensor need not be called as the value that holds it
    return tensor


def _info(value: ir.Value) -> onnx.ValueInfoProto:
    """Name and type, without sizes: they may be those of another batch."""
    info = onnx.ValueInfoProto(name=value.name or "")
    if value.type is not None and value.dtype != ir.DataType.UNDEFINED:
        ir.serde.serialize_type_into(info.type, value.type)
    return info


def _handed(argument: Any, dtype: ir.DataType | None) -> onnxruntime.OrtValue:
    """A tensor in the type that the model says; what is none comes from another such node, and is handed on."""
    if not isinstance(argument, Tensor):
        return argument
    if dtype == ir.DataType.FLOAT or (dtype is None and argument.dtype is torch.bfloat16):
        argument = argument.float()  # under autocast it comes in bfloat16
    array = to_numpy(argument)
    array = np.ascontiguousarray(array if dtype is None else array.astype(dtype.numpy(), copy=False))
    element = int(ir.DataType.from_numpy(array.dtype))
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.reshape(argument.shape), element)


def _taken(result: onnxruntime.OrtValue, device: torch.device) -> Any:
    if not result.is_tensor() or ir.DataType(result.element_type()) not in TORCH_DTYPES:
        return result
    return from_numpy(result.numpy()).to(device)
