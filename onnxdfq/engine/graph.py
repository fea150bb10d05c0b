"""TorchGraph: an ONNX graph as a torch module."""

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir
import torch
from torch import Tensor, nn

from onnxdfq.engine.dtypes import to_numpy, to_torch, torch_dtype
from onnxdfq.engine.operation import Replacement, read_operations, value_name
from onnxdfq.engine.plan import Plan, execute, make_plan
from onnxdfq.errors import InputError, UnsupportedOperator

Signature: TypeAlias = tuple[tuple[tuple[int, ...], torch.dtype, torch.device], ...]


class TorchGraph(nn.Module):
    """An ONNX graph (opset 13 or later) as a differentiable torch module.

    Nodes that the engine has no function for run in ONNX Runtime and let no gradient through (see `fallback`).

    Args:
        model: Read, not changed and not kept.
        outputs: Names of the values to return, inner values included (taps); by default the outputs of the graph. Nodes
            and initializers on which these do not depend are left out. A tap between QuantizeLinear and
            DequantizeLinear gives integers as float32.
        inputs: Names of the values that the caller passes, in the order of `forward`'s arguments; inner values and
            initializers may be among them, and what computes them is left out. By default the inputs of the graph.
        replacements: Value name → function that computes it instead of its node.
        trainable: Names of the float initializers that train. All others have `requires_grad=False`, so no gradient is
            computed for them; where an operator takes one as a Python number (the bounds of Clip, the scales of Resize)
            it is read once per input shape.

    Attributes:
        input_names: Of `forward`'s arguments.
        output_names: Of its results.
        replacement_names: Of the replacements on which the outputs depend.

    Raises:
        InputError: A name in `outputs`, `inputs` or `trainable` is not in the graph, or the outputs depend on an input
            of the graph that `inputs` leaves out.

    The module works under `torch.autocast`, with channels_last inputs, and under `torch.compile(fullgraph=True)` unless
    the shape of some result depends on data (NonMaxSuppression, NonZero).
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        outputs: Sequence[str] | None = None,
        inputs: Sequence[str] | None = None,
        replacements: Mapping[str, Replacement] | None = None,
        trainable: Iterable[str] = (),
    ) -> None:
        super().__init__()
        graph = model.graph
        own = tuple(value_name(value) for value in graph.inputs if value.name not in graph.initializers)
        self.input_names = own if inputs is None else tuple(inputs)
        self.output_names = tuple(map(value_name, graph.outputs) if outputs is None else outputs)
        present = {value.name for node in graph for value in node.outputs}.union(own, graph.initializers)
        if missing := [name for name in (*self.output_names, *self.input_names) if name not in present]:
            raise InputError(
                f"no value named {missing[0]!r} in the graph; name a node's output, an input or an initializer"
            )

        self._operations = read_operations(graph, self.output_names, self.input_names, replacements or {})
        outcomes = {name for operation in self._operations for name in operation.outputs}
        self.replacement_names = tuple(name for name in replacements or {} if name in outcomes)
        self._plans: dict[Signature, Plan] = {}
        self._keys: dict[str, str] = {}  # ONNX name of an initializer → name of the parameter or buffer

        read = {name for operation in self._operations for name in operation.inputs} | set(self.output_names)
        read -= set(self.input_names)
        if needed := read.intersection(own):
            raise InputError(
                f"the outputs depend on the input {min(needed)!r}, which is not among those that are given"
            )
        trains = set(trainable)
        for name in graph.initializers:
            if name in read:
                self._add_initializer(graph.initializers[name], trains=name in trains)
        if absent := trains - self._parameters_by_name().keys():
            raise InputError(
                f"{min(absent)!r} cannot train: name a floating-point initializer on which the requested outputs depend"
            )

    def _add_initializer(self, value: ir.Value, *, trains: bool) -> None:
        name = value_name(value)
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
        """Parameters (floating point) and buffers (integers), by the name of the ONNX initializer."""
        return self._parameters_by_name() | self._buffers_by_name()

    def _parameters_by_name(self) -> dict[str, Tensor]:
        return {name: tensor for name, key in self._keys.items() if (tensor := self._parameters.get(key)) is not None}

    def _buffers_by_name(self) -> dict[str, Tensor]:
        return {name: tensor for name, key in self._keys.items() if (tensor := self._buffers.get(key)) is not None}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs the graph.

        Args:
            inputs: In the order of `input_names`, on one device.

        Returns:
            In the order of `output_names`.

        Raises:
            InputError: The number of arguments is not that of `input_names`.
        """
        results = dict(self.stream(*inputs))
        return tuple([results[name] for name in self.output_names])

    def stream(self, *inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Runs the graph and yields (name, value) of each output as soon as it is computed.

        It frees every value after its last reader, so under `torch.no_grad()` memory holds only the values alive at one
        point of the graph, however many outputs there are: calibration taps all activations. Each name comes once, in
        the order of computation.

        Args:
            inputs: As for `forward`.

        Raises:
            InputError: As `forward` does.
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

    def _prepare(self, signature: Signature) -> None:
        """Makes the plan for these shapes. While torch.compile traces, this runs for real and nothing is recorded."""
        if signature in self._plans:
            return
        # The plan outlives this call and must not inherit the autocast or inference mode that it happens to run in.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            self._plans[signature] = make_plan(
                self._operations,
                inputs={
                    name: torch.empty(shape, dtype=dtype, device="meta")
                    for name, (shape, dtype, _) in zip(self.input_names, signature, strict=True)
                },
                parameters=self._parameters_by_name(),
                constants=self._buffers_by_name(),
                outputs=self.output_names,
                device=signature[0][2] if signature else torch.device("cpu"),
            )

    # What torch.compiler.assume_constant_result sets, which would import torch's whole compiler: half a second.
    _prepare._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def write_back(self, model: ir.Model) -> None:
        """Writes the parameters into the initializers of `model`, in the model's own types.

        An initializer whose bits stay the same is not touched.

        Raises:
            InputError: The model has no initializer of a parameter's name and shape.
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
