"""The float network of a QDQ file, with a switch for each of its quantizers."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.operation import Replacement
from passes.quantize.in_bodies import switch_in_bodies
from passes.quantize.quantizers import Grid, QuantizedConstant, Quantizer, Quantizers
from passes.quantize.take_out import TakeOutQuantizers

Values = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Constant:
    """An initializer that differs between the float network and the quantized one. Both (*shape)."""

    quantized: Float32[NDArray[np.float32], "*shape"]
    floats: Float32[NDArray[np.float32], "*shape"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """model: float, an Identity or Clip in the place of each quantizer (`TakeOutQuantizers`). quantizers: by the name
    of the value that they give. constants: by the name of the initializer. tensors: of these, by name and whether it
    is the quantized one, as far as they were asked for. switches: quantizer in a body → initializer that switches it
    (`switch_in_bodies`). inside: quantized constants of bodies."""

    model: ir.Model
    quantizers: Mapping[str, Quantizer]
    constants: Mapping[str, Constant]
    device: str
    tensors: dict[tuple[str, bool], Tensor] = field(default_factory=dict)
    switches: Mapping[str, str] = field(default_factory=dict)
    inside: tuple[QuantizedConstant, ...] = ()

    @classmethod
    def of(cls, model: ir.Model, found: Quantizers, device: str) -> "Network":
        """Of a QDQ graph, which is only read. Constants that the file holds as integers alone do not differ.

        Raises:
            ValueError: A body computes on integers, or computes a scale.
        """
        model = model.clone()
        TakeOutQuantizers(found)(model)
        switched, inside = switch_in_bodies(model)
        constants = {
            one.value: Constant(quantized=one.numbers, floats=one.original)
            for one in (*found.constants, *inside)
            if one.original is not None
        }
        quantizers = {one.value: one for one in found.activations}
        return cls(
            model=model,
            quantizers=quantizers | {name: one for name, (one, _) in switched.items()},
            constants=constants,
            device=device,
            switches={name: switch for name, (_, switch) in switched.items()},
            inside=inside,
        )

    def with_constants(self, constants: Mapping[str, Constant]) -> "Network":
        """With these on top of its own."""
        return replace(self, constants={**self.constants, **constants}, tensors={})

    @property
    def everything(self) -> frozenset[str]:
        """All that can be switched."""
        return frozenset(self.quantizers) | frozenset(self.constants)

    def constant(self, name: str, *, quantized: bool) -> Tensor:
        """One of either network."""
        if (name, quantized) not in self.tensors:
            one = self.constants[name]
            self.tensors[name, quantized] = _tensor(one.quantized if quantized else one.floats, self.device)
        return self.tensors[name, quantized]

    def rounded(self, name: str, x: Tensor) -> Tensor:
        """What a quantizer makes of a value."""
        switch = _Switch(self.quantizers[name])
        switch.on = True
        return switch(x)

    def graph(self, inputs: Sequence[str], outputs: Sequence[str]) -> "Switched":
        """The part from `inputs`, values of the graph, to `outputs`."""
        return Switched(self, inputs, outputs)


class Switched:
    """A part of a network, that runs with any of its quantizers on."""

    def __init__(self, network: Network, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._switches = {
            name: _Switch(one) for name, one in network.quantizers.items() if name not in network.switches
        }
        self._network, self._inside = network, {switch: name for name, switch in network.switches.items()}
        given = [*inputs, *(name for name in (*network.constants, *self._inside) if name not in inputs)]
        self._graph = (
            TorchGraph(
                network.model,
                inputs=given,
                outputs=outputs,
                replacements={
                    name: Replacement(source=switch.quantizer.source, function=switch)
                    for name, switch in self._switches.items()
                    if name not in inputs
                },
            )
            .to(network.device)
            .eval()
        )

    def stream(self, values: Values, on: Set[str]) -> Iterator[tuple[str, Tensor]]:
        """Names and values of the outputs, one after the other.

        Args:
            values: Of the inputs.
            on: Names of quantizers and constants that quantize.
        """
        for name, switch in self._switches.items():
            switch.on = name in on
        given = (
            values[name]
            if name in values
            else torch.tensor(float(self._inside[name] in on), device=self._network.device)
            if name in self._inside
            else self._network.constant(name, quantized=name in on)
            for name in self._graph.input_names
        )
        yield from self._graph.stream(*given)  # nothing in it trains

    def run(self, values: Values, on: Set[str]) -> Values:
        """All outputs by name; see `stream`."""
        return dict(self.stream(values, on))


class _Switch:
    """Quantizes and dequantizes while it is on; else it keeps the network's own bounds."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.quantizer, self.on = quantizer, False

    def __call__(self, x: Tensor) -> Tensor:
        if not self.on:
            low, high = self.quantizer.bounds
            # a value of its own, so that gradients of what reads it are apart from those of what reads x
            return x.view_as(x) if low is None and high is None else torch.clamp(x, low, high)
        grid, back = self.quantizer.grid, self.quantizer.back
        integers = torch.round(x / _aligned(grid, grid.scale, x)).add_(_aligned(grid, grid.zero, x))
        integers.clamp_(grid.low, grid.high)
        return integers.sub_(_aligned(back, back.zero, x)).mul_(_aligned(back, back.scale, x))


def _aligned(grid: Grid, parameter: NDArray[np.generic], x: Tensor) -> Tensor | float:
    if parameter.size == 1:
        return float(parameter.astype(np.float32).reshape(()))
    found = np.asarray(grid.aligned(parameter, tuple(x.shape)), np.float32)
    return torch.from_numpy(np.ascontiguousarray(found)).reshape(found.shape).to(x.device)


def _tensor(array: NDArray[np.float32], device: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
