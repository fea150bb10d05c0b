"""A float network that trains as the frameworks train it, its BatchNormalizations by the batch, and stays ONNX."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from onnxdfq.engine import Replacement, TorchGraph
from onnxdfq.engine.precision import computing_in
from onnxdfq.errors import InputError
from onnxdfq.recipe.choices import Statistics
from onnxdfq.training.parameters import trainable_initializers
from passes.graph.editing import is_op, name_of


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A BatchNormalization that trains by the batch: its node's values, by name."""

    source: str
    output: str
    scale: str
    bias: str
    mean: str
    var: str
    epsilon: float

    @property
    def initializers(self) -> tuple[str, str, str, str]:
        """All that it reads beside its input."""
        return self.scale, self.bias, self.mean, self.var


class BatchNorm(nn.Module):
    """BatchNormalization by the batch in training, by its running statistics otherwise.

    Args:
        scale, bias: (C,), of which those train that ask for gradients.
        mean, var: (C,), where the running statistics start.
        epsilon: Of the file.
        momentum: Share of the batch in the new running statistics.
    """

    mean: Float32[Tensor, "c"]
    var: Float32[Tensor, "c"]

    def __init__(
        self, scale: nn.Parameter, bias: nn.Parameter, mean: Tensor, var: Tensor, *, epsilon: float, momentum: float
    ) -> None:
        super().__init__()
        self.scale, self.bias = scale, bias
        self.register_buffer("mean", mean)
        self.register_buffer("var", var)
        self._epsilon, self._momentum = epsilon, momentum

    def forward(self, x: Float[Tensor, "n c ..."]) -> Float[Tensor, "n c ..."]:
        """As many numbers; in training the running statistics change."""
        found: Tensor = functional.batch_norm(
            x, self.mean, self.var, self.scale, self.bias, self.training, self._momentum, self._epsilon
        )
        return found


class FloatStudent(nn.Module):
    """A float graph whose weights, biases, scales and slopes are parameters.

    Zeros of a weight that has others beside them were pruned, and stay zero.

    Args:
        model: Read, not changed.
        inputs: Names of its inputs, in the order of `forward`'s arguments.
        outputs: Names of the values that `forward` returns.
        names: Initializers that may change.
        statistics: Of its BatchNormalizations.
        momentum: Share of each batch in the running statistics.
        dtype: What it computes in, by autocast.

    Raises:
        InputError: Nothing in it trains, or two BatchNormalizations that train by the batch share their statistics.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        names: Collection[str],
        statistics: Statistics = "batch",
        momentum: float = 0.1,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self._dtype = dtype
        allowed = {name for name in trainable_initializers(model) if name in names}
        norms = batch_norms(model, names) if statistics == "batch" else []
        _refuse_shared(norms)
        own = {name: _parameter(model, name, name in allowed) for norm in norms for name in (norm.scale, norm.bias)}
        self._own = own
        self._norms = {
            norm: BatchNorm(
                own[norm.scale],
                own[norm.bias],
                _tensor(model, norm.mean),
                _tensor(model, norm.var),
                epsilon=norm.epsilon,
                momentum=momentum,
            )
            for norm in norms
        }
        self.norms = nn.ModuleList(self._norms.values())
        replacements = {
            norm.output: Replacement(source=norm.source, function=module) for norm, module in self._norms.items()
        }
        self._graph = TorchGraph(model, inputs=inputs, outputs=outputs, replacements=replacements)
        read = self._graph.initializers
        self._trains = {name: read[name].requires_grad_() for name in sorted(allowed & read.keys() - own.keys())}
        self._trains |= {name: parameter for name, parameter in own.items() if parameter.requires_grad}
        if not self._trains:
            raise InputError("it has no weights that train: none of its layers has any as an initializer.")
        for parameter in self.weights():
            _keep_zeros(parameter)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """In the order of `outputs`."""
        with computing_in(self._dtype, inputs[0].device):
            found: tuple[Tensor, ...] = self._graph(*inputs)
        return found

    def weights(self) -> list[Tensor]:
        """Parameters of two axes and more."""
        return [tensor for tensor in self._trains.values() if tensor.ndim > 1]

    def vectors(self) -> list[Tensor]:
        """Biases, scales and slopes."""
        return [tensor for tensor in self._trains.values() if tensor.ndim <= 1]

    def numbers(self) -> dict[str, NDArray[np.float32]]:
        """By initializer, whatever training may have changed, running statistics among them."""
        found = dict(self._trains)
        for norm, module in self._norms.items():
            found |= {norm.mean: module.mean, norm.var: module.var}
        return {name: tensor.detach().float().cpu().numpy() for name, tensor in found.items()}


def batch_norms(model: ir.Model, names: Collection[str]) -> list[Norm]:
    """The BatchNormalizations of the main graph whose statistics are initializers that may change."""
    return [norm for node in model.graph if (norm := _norm(node)) is not None and {norm.mean, norm.var} <= set(names)]


def _norm(node: ir.Node) -> Norm | None:
    if not is_op(node, "BatchNormalization") or any(v is None or not v.is_initializer() for v in node.inputs[1:5]):
        return None
    source, scale, bias, mean, var = (name_of(value) for value in node.inputs[:5] if value is not None)
    return Norm(
        source=source,
        output=name_of(node.outputs[0]),
        scale=scale,
        bias=bias,
        mean=mean,
        var=var,
        epsilon=node.attributes.get_float("epsilon", 1e-5),
    )


def _refuse_shared(norms: Sequence[Norm]) -> None:
    first: dict[str, Norm] = {}
    for norm in norms:
        for name in (norm.mean, norm.var):
            if name in first:
                raise InputError(
                    f"the BatchNormalizations behind {first[name].source!r} and {norm.source!r} share the statistics "
                    f"{name!r}, which cannot run along with both; give each its own, or leave them fixed "
                    "(--statistics fixed)."
                )
            first[name] = norm


def _array(model: ir.Model, name: str) -> NDArray[np.float32]:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy().astype(np.float32)


def _tensor(model: ir.Model, name: str) -> Float32[Tensor, "c"]:
    return torch.from_numpy(_array(model, name).copy())


def _parameter(model: ir.Model, name: str, trains: bool) -> nn.Parameter:
    return nn.Parameter(_tensor(model, name), requires_grad=trains)


def _keep_zeros(weight: Tensor) -> None:
    """No gradient reaches zeros, and so neither momentum nor decay moves them."""
    kept = weight.detach() != 0
    if kept.any() and not kept.all():
        weight.register_hook(lambda slope: slope * kept.to(slope.device))  # type: ignore[no-untyped-call]
