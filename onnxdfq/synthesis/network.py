"""The network as a synthesis method sees it: image in, statistics' tensors and outputs out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.feeds import Feeds
from onnxdfq.engine.operation import Replacement
from onnxdfq.engine.precision import channels_last, computing_in, resolve_precision
from onnxdfq.errors import DataError, NoBatchNorm
from onnxdfq.model_file import InputSpec
from onnxdfq.recipe.choices import Precision
from onnxdfq.synthesis.statistics import Targets, centred_moments, image_moments
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.graph.batch_norm import BatchNormStats, read_batch_norms
from passes.graph.compared import compared_values
from passes.graph.folding import absence_in_words

# |bias / scale| up to which a BatchNormalization is folded: there bfloat16's rounding of its output, in units of
# its input, is a thirtieth of the standard deviation, and a thousandth of the variance.
GREATEST_BIAS_RATIO = 30


def no_batch_norm(model: ir.Model, method: str) -> NoBatchNorm:
    """The error that a method which lives on running statistics raises for a model that carries none."""
    return NoBatchNorm(
        f"{method} reads the running statistics of BatchNormalization, and {absence_in_words(model)}. Where the "
        "network has it, export again with onnxdfq.export(module, example, path), or torch.onnx.export(..., "
        "dynamo=False, training=TrainingMode.PRESERVE, do_constant_folding=False), or torch.onnx.export(..., "
        "dynamo=True, optimize=False). Without BatchNormalization these still work: --method dead-leaves, and "
        "--calibration FILE with images of your own."
    )


class TappedNetwork:
    """An ONNX model with taps that the moments of every BatchNormalization's input follow from.

    A BatchNormalization that folds into the layer before it is folded, which saves its two passes over memory: its
    output is an affine map of its input, and so are their moments. Inputs that are not given are fed what suits them.

    Args:
        model: Canonical, its BatchNormalizations intact.
        method: Whose name an error begins with.
        device: Where the network runs.
        precision: "auto" computes in bfloat16 where the hardware multiplies it natively, else in float32; moments are
            float32 either way.
        outputs: Names of the float values that `forward` returns; by default the outputs that files are compared by.
        statistics: Whether it has to have some; otherwise there may be no taps.
        replacements: As for `TorchGraph`.

    Raises:
        NoBatchNorm: The model has none.
        ShapeError: The model has no input.
        UnsupportedOperator: The engine lacks an operator of the model.

    targets: the running statistics of its L layers, S channels in all.
    """

    def __init__(
        self,
        model: ir.Model,
        *,
        method: str,
        device: str,
        precision: Precision,
        outputs: Sequence[str] | None = None,
        statistics: bool = True,
        replacements: Mapping[str, Replacement] | None = None,
    ) -> None:
        batch_norms = read_batch_norms(model)
        if statistics and not batch_norms:
            raise no_batch_norm(model, method)
        self.device = torch.device(device)
        self._feeds = Feeds(model)
        self.spec = self._feeds.main
        self.targets = Targets.of(
            [self._vector(norm.mean) for norm in batch_norms], [self._vector(norm.var) for norm in batch_norms]
        )
        computed, taps = _folded(model, batch_norms)
        self._centres = [self._vector(tap.centre) for tap in taps]
        self._units = torch.cat([self._vector(tap.unit) for tap in taps] or [torch.zeros(0)])
        names = list(dict.fromkeys(tap.value for tap in taps))  # two layers may normalise one value
        self._tap_of_layer = [names.index(tap.value) for tap in taps]
        if outputs is None:
            outputs = [str(value.name) for value in compared_values(model.graph)]
        names += [name for name in outputs if name not in names]
        self._output_slots = [names.index(name) for name in outputs]
        self._graph = TorchGraph(computed, outputs=names, replacements=replacements).to(self.device).eval()
        self._dtype = resolve_precision(self.device, precision)

    @property
    def planes(self) -> tuple[int, int, int]:
        """(C, H, W) that a sample of the main input is looked at as. Raises ShapeError where a size is not known."""
        return self.spec.planes

    def given(self, planes: Float32[Tensor, "n c h w"]) -> dict[str, Tensor]:
        """Samples of the main input in its own layout, by its name; gradients pass."""
        return {self.spec.name: as_input(self.spec, planes)}

    def batch_sizes(self, count: int, batch_size: int) -> list[int]:
        """Sizes of the batches that hold `count` images. All are full, and there may be more images, where the model
        runs at one batch size only."""
        return batch_sizes(count, batch_size, self._feeds.batch)

    @property
    def has_fixed_batch(self) -> bool:
        """Whether the model runs at one batch size only."""
        return self._feeds.batch is not None

    @property
    def precision(self) -> str:
        """What "auto" came to: "float32" or "bfloat16"."""
        return str(self._dtype).removeprefix("torch.")

    def forward(self, given: Mapping[str, Tensor]) -> tuple[list[Float[Tensor, "n _ ..."]], list[Float[Tensor, "..."]]]:
        """Run a batch.

        Args:
            given: By input name, (N, *sample_shape) in the model's units; floats where gradients are to pass.

        Returns:
            Taps of the L layers, each (N, C_l, *), and the float outputs, each (N, *).
        """
        laid = {name: channels_last(tensor) for name, tensor in given.items()}
        with computing_in(self._dtype, self.device):
            values = self._graph(*self._feeds.of(self._graph.input_names, laid))
        for tap in self._tap_of_layer:
            if not values[tap].numel():
                raise DataError(
                    f"The value {self._graph.output_names[tap]!r}, which a BatchNormalization reads, holds no number: "
                    f"its shape is {list(values[tap].shape)}."
                )
        return [values[tap] for tap in self._tap_of_layer], [values[slot] for slot in self._output_slots]

    def moments(self, taps: list[Float[Tensor, "n _ ..."]]) -> Float32[Tensor, "2 s"]:
        """First and second moment of each BatchNormalization's input, centred at its running mean."""
        pairs = [centred_moments(tap, centre) for tap, centre in zip(taps, self._centres, strict=True)]
        first, second = (torch.cat(part) for part in zip(*pairs, strict=True))
        return torch.stack([first * self._units, second * self._units.square()])

    def image_moments(
        self, taps: list[Float[Tensor, "n _ ..."]], layer: int
    ) -> tuple[Float32[Tensor, "n c"], Float32[Tensor, "n c"]]:
        """The same of one layer for each image by itself."""
        first, second = image_moments(taps[layer], self._centres[layer])
        unit = self.targets.layers(self._units)[layer]
        return first * unit, second * unit.square()

    def _vector(self, array: Float[NDArray[np.floating[Any]], "c"]) -> Float32[Tensor, "c"]:
        return torch.tensor(array, dtype=torch.float32, device=self.device)


def batch_sizes(count: int, size: int, fixed: int | None = None) -> list[int]:
    """Sizes of batches that hold so many images: the last may be smaller, unless the model runs at one size only."""
    if fixed is not None:
        return [fixed] * -(-count // fixed)
    return [min(size, count - start) for start in range(0, count, size)]


def as_input(spec: InputSpec, planes: Float32[Tensor, "n c h w"]) -> Float32[Tensor, "n ..."]:
    """Samples as an input has them; `InputSpec.from_planes` for tensors."""
    if spec.image == "last":
        return planes.permute(0, 2, 3, 1)
    return planes.reshape(len(planes), *(size or 1 for size in spec.sample_shape))


@dataclass(frozen=True, kw_only=True)
class _Tap:
    """(x - running mean) of a BatchNormalization's input x is (`value` - centre) * unit, per channel."""

    value: str
    centre: Float[NDArray[np.floating[Any]], "c"]
    unit: Float[NDArray[np.floating[Any]], "c"]


def _folded(model: ir.Model, batch_norms: Sequence[BatchNormStats]) -> tuple[ir.Model, list[_Tap]]:
    """The model with what may be folded, and the taps in it, one per BatchNormalization."""
    with np.errstate(over="ignore"):
        least = [GREATEST_BIAS_RATIO * np.abs(norm.scale) for norm in batch_norms]
    # of a channel whose scale is 0, nothing behind the normalization tells what was before it
    keep = [
        norm.node
        for norm, bound in zip(batch_norms, least, strict=True)
        if (np.abs(norm.bias) > bound).any() or not bound.all()
    ]
    folded = model.clone()
    FoldBatchNorm(keep)(folded)
    present = {value.name for node in folded.graph for value in node.outputs} | {v.name for v in folded.graph.inputs}
    outputs = {node.name: node.outputs[0].name or "" for node in model.graph}
    taps = []
    for norm in batch_norms:
        if norm.value in present:
            taps.append(_Tap(value=norm.value, centre=norm.mean, unit=np.ones_like(norm.mean)))
        elif outputs[norm.node] in present:
            unit = np.sqrt(norm.var.astype(np.float64) + norm.epsilon) / norm.scale
            taps.append(_Tap(value=outputs[norm.node], centre=norm.bias, unit=unit))
        else:  # more was folded behind it, and neither its input nor its output is left
            return model, [_Tap(value=n.value, centre=n.mean, unit=np.ones_like(n.mean)) for n in batch_norms]
    return folded, taps
