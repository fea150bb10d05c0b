"""Float operators of a quantized graph, computed by ONNX Runtime itself wherever no gradient is needed.

Softmax and LayerNormalization stay float between two quantizers, and libraries differ in their last bits: in the
polynomial for an exponential, in the order of a sum. Now and then such a bit decides which way the next quantizer
rounds, and a few layers later outputs are several steps away from those of the written file.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

from onnxdfq.model_file.runtime import session_options

LAST_BITS: frozenset[str] = frozenset(
    {"Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "InstanceNormalization", "LayerNormalization",
     "LogSoftmax", "Mish", "Selu", "Sigmoid", "Softmax", "Softplus", "Tanh"}
)  # fmt: skip
"""Operators whose results differ between libraries in the last bits."""


class AsRuntime:
    """Calls one node: ONNX Runtime's kernel for float32 tensors on the CPU, else `function`, as for gradients.

    Args:
        node: Of the operator set `opset`.
        function: The engine's own, with the node's attributes bound.
        opset: Of the graph.
    """

    def __init__(self, node: ir.Node, function: Callable[..., Any], opset: int) -> None:
        self._node = ir.serde.serialize_node(node)
        self._function = function
        self._opset = opset

    def __call__(self, *arguments: Tensor | None) -> Any:
        if not _plain(arguments):
            return self._function(*arguments)
        named = zip(self._node.input, arguments, strict=False)
        feeds = {name: tensor.detach().contiguous().numpy() for name, tensor in named if tensor is not None}
        return tuple(map(torch.from_numpy, self._session.run(None, feeds)))

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        def typed(names: Any) -> list[onnx.ValueInfoProto]:
            return [
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
                for name in dict.fromkeys(filter(None, names))
            ]

        graph = onnx.helper.make_graph([self._node], "node", typed(self._node.input), typed(self._node.output))
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self._opset)], ir_version=10)
        options = session_options()
        options.intra_op_num_threads = 1  # every session has threads of its own, and there is one for each node
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_session"}  # made anew in a copy


def _plain(arguments: tuple[Tensor | None, ...]) -> bool:
    """Whether these are float32 tensors in the CPU's memory that need no gradient."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    gradients = torch.is_grad_enabled()
    return all(
        argument is None
        or (
            type(argument) in (Tensor, nn.Parameter)  # a tracer's stand-ins are of other types
            and argument.device.type == "cpu"
            and argument.dtype is torch.float32
            and not (gradients and argument.requires_grad)
        )
        for argument in arguments
    )
