"""A plan as a network that trains: what is computed is what ships."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor, nn

from onnxdfq.engine import Replacement, TorchGraph
from onnxdfq.engine.precision import computing_in
from onnxdfq.training.weights import ShadowBias, ShadowWeight
from onnxdfq.tuning.activations import ActivationQuantizer
from onnxdfq.tuning.quantized import QdqGraph
from onnxdfq.tuning.tuning import FINE_BITS, whole_reciprocals
from passes.quantize.plan import QuantPlan, TensorQuant
from passes.target.target import Target


class Student(nn.Module):
    """The QDQ graph of a plan, with its weights, biases and, where they may be any number, scales as parameters.

    BatchNormalization is folded: its gamma trains as a weight's factor or scale, its beta as the bias, and its
    statistics stay.

    Args:
        model: The float graph that the plan is for; it is only read.
        plan: Where training starts.
        target: As for `QdqGraph`.
        reference: The float network whose weights are rounded, where `model` holds integers of the plan already: the
            same nodes, other numbers.
        outputs: Names of the values of the float graph that `forward` returns, quantized where they are; by default
            the graph's outputs.
        taps: Names of values that it returns behind them, before they are quantized.
        learn_scales: Whether scales of weights, and of activations below 8 bits, may take any value and train.
        dtype: What it computes in, by autocast.
    """

    def __init__(
        self,
        model: ir.Model,
        plan: QuantPlan,
        target: Target,
        *,
        reference: ir.Model | None = None,
        outputs: Sequence[str] | None = None,
        taps: Sequence[str] = (),
        learn_scales: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self._qdq = QdqGraph(model, plan, target, reference=reference)
        self._dtype = dtype
        learn = learn_scales and not plan.bias_quants  # all scales of such a plan hang together
        self._names = tuple(plan.weights)
        self.weights = nn.ModuleList(
            ShadowWeight(array, quant, plan.weight_integers(name, array), learn_scale=learn)
            for name, quant, array in _weights(reference or model, plan)
        )
        whole = whole_reciprocals(model)
        quantizers = {
            key: ActivationQuantizer(
                quant,
                learned=learn and quant.bits < FINE_BITS and quant.clip is None,
                searched=False,
                whole_reciprocal=key in whole,
            )
            for key, quant in plan.activations.items()
        }
        self._keys, self._quantizer_of = tuple(quantizers), quantizers
        self._weight_of = dict(zip(self._names, self.shadows(), strict=True))
        self.quantizers = nn.ModuleList(quantizers.values())
        biases = self._qdq.bias_names(tuple(plan.biases))
        inputs = [value.name or "" for value in model.graph.inputs if value.name not in model.graph.initializers]
        if outputs is None:
            outputs = [value.name or "" for value in model.graph.outputs]
        self._graph = TorchGraph(
            self._qdq.model,
            inputs=[*inputs, *self._names, *biases.values()],
            outputs=[*map(self._qdq.read_name, outputs), *(self._qdq.float_name(tap) for tap in taps)],
            replacements={
                output: Replacement(source=site.source, function=quantizers[site.key])
                for output, site in self._qdq.sites.items()
                if site.key in quantizers
            },
        )
        self.input_names = tuple(inputs)
        self._layers = tuple(biases)
        self._biases = nn.ModuleList(ShadowBias(plan.biases[layer], self._qdq.bias_grid(layer)) for layer in biases)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs, then taps.

        inputs: those of the model, in the order of `input_names`.
        """
        weights, biases = [weight() for weight in self.weights], [self._bias(layer) for layer in self._shadow_biases()]
        with computing_in(self._dtype, inputs[0].device):
            found: tuple[Tensor, ...] = self._graph(*inputs, *weights, *biases)
        return found

    def biases(self) -> list[nn.Parameter]:
        """Those that train, (C_out,) each."""
        return [bias.value for bias in self._shadow_biases()]

    def scales(self) -> list[nn.Parameter]:
        """log2 of the activation scales that train."""
        return [quantizer.log2_scale for quantizer in self._quantizers() if quantizer.tunable]

    def plan(self) -> QuantPlan:
        """What was trained, as the numbers that are written."""
        learned = {name: weight for name, weight in self._weight_of.items() if weight.learns_scale}
        self._qdq.write_weight_scales({name: weight.channel_scales() for name, weight in learned.items()})
        integers = {}
        for name, weight in self._weight_of.items():
            rounding = self._qdq.rounding(name, weight.value())
            rounding.harden()
            integers[name] = rounding.integers()
        self._qdq.write(
            integers,
            {key: one.scale for key, one in zip(self._keys, self._quantizers(), strict=True) if one.tunable},
            {
                layer: bias.value.detach().cpu().numpy()
                for layer, bias in zip(self._layers, self._shadow_biases(), strict=True)
            },
        )
        return self._qdq.plan()

    def shadows(self) -> Iterator[ShadowWeight]:
        """Its weights, in the order of the plan."""
        for module in self.weights:
            assert isinstance(module, ShadowWeight)
            yield module

    def _bias(self, bias: ShadowBias) -> Float32[Tensor, "o"]:
        if bias.grid is None:
            return bias.value
        weight, source = self._weight_of[bias.grid.weight], self._quantizer_of[bias.grid.source]
        found: Tensor = bias(weight.growth() * source.growth())
        return found

    def _shadow_biases(self) -> Iterator[ShadowBias]:
        for module in self._biases:
            assert isinstance(module, ShadowBias)
            yield module

    def _quantizers(self) -> Iterator[ActivationQuantizer]:
        for module in self.quantizers:
            assert isinstance(module, ActivationQuantizer)
            yield module


def _weights(model: ir.Model, plan: QuantPlan) -> Iterator[tuple[str, TensorQuant, NDArray[np.float32]]]:
    for name, quant in plan.weights.items():
        value = model.graph.initializers[name].const_value
        assert value is not None
        yield name, quant, value.numpy()
