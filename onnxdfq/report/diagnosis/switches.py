"""The float network of a QDQ file, with a switch for each of its quantizers."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.operation import Replacement
from passes.quantize.quantizers import Grid, Quantizer, Quantizers
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
    of the value that they give. constants: by the name of the initializer."""

    model: ir.Model
    quantizers: Mapping[str, Quantizer]
    constants: Mapping[str, Constant]
    device: str

    @classmethod
    def of(cls, model: ir.Model, found: Quantizers, device: str) -> "Network":
        """Of a QDQ graph, which is only read. Constants that the file holds as integers alone do not differ."""
        model = model.clone()
        TakeOutQuantizers(found)(model)
        constants = {
            one.value: Constant(quantized=one.numbers, floats=one.original)
            for one in found.constants
            if one.original is not None
        }
        quantizers = {one.value: one for one in found.activations}
        return cls(model=model, quantizers=quantizers, constants=constants, device=device)

    def with_constants(self, constants: Mapping[str, Constant]) -> "Network":
        """With these on top of its own."""
        return replace(self, constants={**self.constants, **constants})

    @property
    def everything(self) -> frozenset[str]:
        """All that can be switched."""
        return frozenset(self.quantizers) | frozenset(self.constants)

    def graph(self, inputs: Sequence[str], outputs: Sequence[str]) -> "Switched":
        """The part from `inputs`, values of the graph, to `outputs`."""
        return Switched(self, inputs, outputs)


class Switched:
    """A part of a network, that runs with any of its quantizers on."""

    def __init__(self, network: Network, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._switches = {name: _Switch(one) for name, one in network.quantizers.items()}
        self._constants = network.constants
        self._device = network.device
        given = [*inputs, *(name for name in network.constants if name not in inputs)]
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
        arrays = {
            name: np.ascontiguousarray(one.quantized if name in on else one.floats)
            for name, one in self._constants.items()
        }
        tensors = {
            name: values[name] if name in values else torch.from_numpy(arrays[name]).to(self._device)
            for name in self._graph.input_names
        }
        yield from self._graph.stream(*tensors.values())  # nothing in it trains

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
            return x if low is None and high is None else torch.clamp(x, low, high)
        grid, back = self.quantizer.grid, self.quantizer.back
        integers = torch.round(x / _aligned(grid, grid.scale, x)) + _aligned(grid, grid.zero, x)
        integers = torch.clamp(integers, grid.low, grid.high)
        return (integers - _aligned(back, back.zero, x)) * _aligned(back, back.scale, x)


def _aligned(grid: Grid, parameter: NDArray[np.generic], x: Tensor) -> Tensor:
    found = np.asarray(grid.aligned(parameter, tuple(x.shape)), np.float32)
    return torch.from_numpy(np.ascontiguousarray(found)).reshape(found.shape).to(x.device)
