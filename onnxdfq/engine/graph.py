"""TorchGraph: an ONNX graph as a torch module."""

import inspect
import operator
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import onnx_ir as ir
import torch
from torch import Tensor, nn

from onnxdfq.engine.dtypes import to_numpy, to_torch, torch_dtype
from onnxdfq.engine.host import host_inputs
from onnxdfq.engine.ops import OPERATORS
from onnxdfq.engine.plan import Operation, Plan, execute, make_plan
from onnxdfq.engine.quant import float_carriers
from onnxdfq.errors import InputError, UnsupportedOperator

Signature: TypeAlias = tuple[tuple[tuple[int, ...], torch.dtype, torch.device], ...]


class TorchGraph(nn.Module):
    """An ONNX graph (opset 13 or later) as a differentiable torch module.

    Args:
        model: is read, not changed and not kept.
        outputs: names of any values to return (taps); by default the outputs of the graph. Nodes and initializers that
            these do not need are left out. A tap between QuantizeLinear and DequantizeLinear gives integers as float32.
        trainable: names of the float initializers that train. All others have `requires_grad=False`, so no gradient is
            computed for them; where an operator takes one as a Python number (the bounds of Clip, the scales of Resize)
            it is read once per input shape.

    Raises:
        UnsupportedOperator: a node is of an operator, or has an attribute or element type, that the engine lacks.
        InputError: a name in `outputs` or `trainable` is not in the graph.

    The module works under `torch.autocast`, with channels_last inputs, and under `torch.compile(fullgraph=True)` unless
    the shape of some result depends on data (NonMaxSuppression, NonZero).
    """

    def __init__(self, model: ir.Model, *, outputs: Sequence[str] | None = None, trainable: Iterable[str] = ()) -> None:
        super().__init__()
        graph = model.graph
        produced = {name: node for node in graph for value in node.outputs if (name := value.name)}
        self.input_names = tuple(_name(value) for value in graph.inputs if value.name not in graph.initializers)
        self.output_names = tuple(map(_name, graph.outputs) if outputs is None else outputs)
        present = {*self.input_names, *graph.initializers, *produced}
        if missing := [name for name in self.output_names if name not in present]:
            raise InputError(
                f"no value named {missing[0]!r} in the graph; name a node's output, an input or an initializer"
            )

        needed = _needed_nodes(graph, self.output_names)
        carriers = float_carriers(needed, {_name(value) for value in graph.outputs})
        self._operations = tuple(_operation(node, carries_float=node in carriers) for node in needed)
        self._plans: dict[Signature, Plan] = {}
        self._keys: dict[str, str] = {}  # ONNX name of an initializer → name of the parameter or buffer

        read = {name for operation in self._operations for name in operation.inputs} | set(self.output_names)
        trains = set(trainable)
        for name in graph.initializers:
            if name in read:
                self._add_initializer(graph.initializers[name], trains=name in trains)
        if absent := trains - self._parameters_by_name().keys():
            raise InputError(
                f"{min(absent)!r} cannot train: name a floating-point initializer on which the requested outputs depend"
            )

    def _add_initializer(self, value: ir.Value, *, trains: bool) -> None:
        name = _name(value)
        if value.const_value is None:
            raise InputError(f"initializer {name!r} has no data; load the model together with its external data")
        try:
            tensor = to_torch(value.const_value)
        except UnsupportedOperator as error:
            raise UnsupportedOperator(f"initializer {name!r}: {error}") from None
        # Torch allows no dot in a name, and keeps names such as "training" for itself: hence the escape and the prefix.
        key = "onnx:" + name.replace("%", "%25").replace(".", "%2E")
        self._keys[name] = key
        if tensor.is_floating_point():
            self.register_parameter(key, nn.Parameter(tensor, requires_grad=trains))
        else:
            self.register_buffer(key, tensor)

    @property
    def initializers(self) -> dict[str, Tensor]:
        """Parameters (floating point) and buffers (integers) by the name of the ONNX initializer."""
        return self._parameters_by_name() | self._buffers_by_name()

    def _parameters_by_name(self) -> dict[str, Tensor]:
        return {name: tensor for name, key in self._keys.items() if (tensor := self._parameters.get(key)) is not None}

    def _buffers_by_name(self) -> dict[str, Tensor]:
        return {name: tensor for name, key in self._keys.items() if (tensor := self._buffers.get(key)) is not None}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs the graph; returns the requested outputs in the order of `output_names`."""
        results = dict(self.stream(*inputs))
        return tuple([results[name] for name in self.output_names])

    def stream(self, *inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yields each requested output as soon as it is computed, and keeps nothing that no later node reads.

        For calibration: under `torch.no_grad()` the memory in use is that of the values alive at one point of the
        graph, however many outputs are requested. Each name comes once, in the order of computation.
        """
        if len(inputs) != len(self.input_names):
            raise InputError(
                f"the graph has {len(self.input_names)} inputs {self.input_names}, {len(inputs)} were given"
            )
        # `operator.index` makes a constant of a dimension that torch.compile would keep symbolic.
        signature = tuple([(tuple([operator.index(n) for n in x.shape]), x.dtype, x.device) for x in inputs])
        self._prepare(signature)
        plan = self._plans[signature]
        values = {**self._parameters_by_name(), **plan.constants, **dict(zip(self.input_names, inputs, strict=True))}
        del inputs
        for name in dict.fromkeys(self.output_names):
            if name in values:
                yield name, values[name]
        for name in execute(plan, values):
            yield name, values[name]

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _prepare(self, signature: Signature) -> None:
        """Makes the plan for these shapes. While torch.compile traces, this runs for real and nothing is recorded."""
        if signature not in self._plans:
            self._plans[signature] = make_plan(
                self._operations,
                inputs={
                    name: torch.empty(shape, dtype=dtype, device="meta")
                    for name, (shape, dtype, _) in zip(self.input_names, signature, strict=True)
                },
                parameters=self._parameters_by_name(),
                constants=self._buffers_by_name(),
                requested=self.output_names,
                device=signature[0][2] if signature else torch.device("cpu"),
            )

    def write_back(self, model: ir.Model) -> None:
        """Writes the parameters into the initializers of `model`: those whose bits differ, in the model's own type.

        Raises InputError where the model has no initializer of that name and shape.
        """
        for name, parameter in self._parameters_by_name().items():
            value = model.graph.initializers.get(name)
            if value is None or value.const_value is None or tuple(value.const_value.shape) != tuple(parameter.shape):
                raise InputError(
                    f"the model has no initializer {name!r} of shape {list(parameter.shape)}; "
                    "write back into the model that the graph was made from"
                )
            before = value.const_value
            after = to_numpy(parameter.detach().to(torch_dtype(before.dtype)))
            if after.tobytes() != before.tobytes():
                value.const_value = ir.Tensor(after, dtype=before.dtype, name=name)


def _name(value: ir.Value) -> str:
    if value.name is None:
        raise InputError("a value of the graph has no name; give every value one")
    return value.name


def _needed_nodes(graph: ir.Graph, outputs: Iterable[str]) -> list[ir.Node]:
    """The nodes on which the named values depend, in topological order."""
    wanted = set(outputs)
    needed = []
    for node in reversed(graph):
        if wanted.isdisjoint(value.name for value in node.outputs):
            continue
        needed.append(node)
        wanted.update(value.name for value in node.inputs if value is not None and value.name)
    return needed[::-1]


def _operation(node: ir.Node, *, carries_float: bool) -> Operation:
    label = f"{node.op_type} node {node.name or _name(node.outputs[0])!r}"
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        raise UnsupportedOperator(
            f"{label}: operator {node.op_type!r} of domain {node.domain or 'ai.onnx'!r} is not supported. "
            "Export the model with standard operators (opset 13 or later), or cut the graph before this node."
        )
    function = OPERATORS[node.op_type]
    signature = inspect.signature(function).parameters
    attributes: dict[str, Any] = {}
    for attribute in node.attributes.values():
        if attribute.name not in signature:
            raise UnsupportedOperator(
                f"{label}: attribute {attribute.name!r} is not supported. "
                "Convert the model to opset 13 or later, or export it without this attribute."
            )
        try:
            attributes[attribute.name] = value = _attribute_value(attribute)
            if attribute.name in _TYPE_ATTRIBUTES and value:
                torch_dtype(value)  # raises here, not at the first run
        except UnsupportedOperator as error:
            raise UnsupportedOperator(f"{label}: {error}") from None
    outputs = tuple(value.name or "" for value in node.outputs)
    # Facts about the node that are no attributes; an operator asks for one by having such a parameter.
    facts = {
        "output_count": len(outputs),
        "carries_float": carries_float,
        "input_types": tuple(_element_type(value) for value in node.inputs),
    }
    attributes |= {name: fact for name, fact in facts.items() if name in signature}
    return Operation(
        label=label,
        op_type=node.op_type,
        function=partial(function, **attributes) if attributes else function,
        inputs=tuple((value.name or "") if value is not None else "" for value in node.inputs),
        outputs=outputs,
        host=host_inputs(function),
    )


_TYPE_ATTRIBUTES = frozenset({"dtype", "output_dtype", "precision", "softmax_precision", "to"})
"""Attributes that hold an ONNX element type."""


def _element_type(value: ir.Value | None) -> int:
    """The ONNX element type of a value, 0 where the model does not say."""
    if value is None:
        return 0
    producer = value.producer()
    if (
        value.dtype is None and producer is not None and "value" in producer.attributes
    ):  # a Constant without shape inference
        return int(producer.attributes["value"].as_tensor().dtype)
    return int(value.dtype or 0)


def _attribute_value(attribute: ir.Attr) -> Any:
    match attribute.type:
        case ir.AttributeType.INT | ir.AttributeType.FLOAT | ir.AttributeType.STRING:
            return attribute.value
        case ir.AttributeType.INTS | ir.AttributeType.FLOATS:
            return tuple(attribute.value)
        case ir.AttributeType.TENSOR:
            return to_torch(attribute.as_tensor())
    raise UnsupportedOperator(f"attribute {attribute.name!r} of type {attribute.type.name} is not supported")
