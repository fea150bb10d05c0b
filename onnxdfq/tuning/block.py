"""One block of the QDQ graph while it is tuned, and the data that it is tuned on."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from onnxdfq.engine import Replacement, TorchGraph
from onnxdfq.engine.precision import computing_in
from onnxdfq.tuning.activations import ActivationQuantizer
from onnxdfq.tuning.blocks import Block
from onnxdfq.tuning.quantized import QdqGraph
from onnxdfq.tuning.rounding import WeightRounding

ERROR_IMAGES = 256  # that an error is measured on


@dataclass(frozen=True, kw_only=True)
class BlockData:
    """What a block is tuned on, over all images.

    entry: the block's input before it is quantized, as the tuned network makes it. float_entry, float_exit:
    input and output of the block in the float network. device, dtype: of the batches.
    """

    entry: Float[Tensor, "n ..."]
    float_entry: Float[Tensor, "n ..."]
    float_exit: Float[Tensor, "n ..."]
    device: torch.device
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.entry)

    def batch(
        self, index: Int64[Tensor, "n"] | slice
    ) -> tuple[Float[Tensor, "n ..."], Float[Tensor, "n ..."], Float[Tensor, "n ..."]]:
        """entry, float_entry and float_exit of some images, on the device; of rank 4 channels-last in memory."""
        entry, float_entry, float_exit = map(
            self._loaded, (self.entry[index], self.float_entry[index], self.float_exit[index])
        )
        return entry, float_entry, float_exit

    def _loaded(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        layout = torch.channels_last if values.ndim == 4 else torch.contiguous_format
        return values.to(self.device, self.dtype, memory_format=layout)


class TunedBlock(nn.Module):
    """A block whose weights are roundings, whose activation quantizers may mix, and whose biases train.

    Args:
        graph: The QDQ graph that the block is a part of.
        block: Which part.
        roundings: By name, of all its weights.
        quantizers: By the name of the activation in the plan; those that the block reads become its own.
        dtype: What it computes in, by autocast.
    """

    def __init__(
        self,
        graph: QdqGraph,
        block: Block,
        roundings: Mapping[str, WeightRounding],
        quantizers: Mapping[str, ActivationQuantizer],
        *,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self._dtype = dtype
        entry = graph.read_name(block.entry)
        self.roundings = tuple(roundings.values())
        self._registered = nn.ModuleList(self.roundings)
        sites = {output: site for output, site in graph.sites.items() if site.key in quantizers}
        biases = graph.bias_names(block.nodes)
        self._graph = TorchGraph(
            graph.model,
            inputs=[entry, *roundings],
            outputs=[graph.float_name(block.exit)],
            replacements={
                output: Replacement(source=site.source, function=quantizers[site.key])
                for output, site in sites.items()
                if output != entry
            },
            trainable=biases.values(),
        )
        self.biases = {layer: self._graph.initializers[name] for layer, name in biases.items()}
        keys = [sites[output].key for output in (entry, *self._graph.replacement_names) if output in sites]
        self.quantizers = {key: quantizers[key] for key in keys}
        self._entry_quantizer = quantizers[sites[entry].key] if entry in sites else None

    def forward(
        self, entry: Float[Tensor, "n *shape"], float_entry: Float[Tensor, "n *shape"]
    ) -> Float[Tensor, "n ..."]:
        """The block's output from its input, tuned and float; all of them before they are quantized."""
        if self._entry_quantizer is not None:
            entry = self._entry_quantizer.mixed(entry, float_entry)
        with computing_in(self._dtype, entry.device):
            (result,) = self._graph(entry, *(rounding() for rounding in self.roundings))
        output: Tensor = result
        return output

    @torch.no_grad()
    def hard_error(self, data: BlockData) -> float:
        """The reconstruction error with every weight rounded, on the first images; the roundings stay as they are."""
        soft = [rounding.v.clone() for rounding in self.roundings]
        for rounding in self.roundings:
            rounding.harden()
        total, count = 0.0, min(ERROR_IMAGES, len(data))
        for start in range(0, count, 64):
            entry, float_entry, target = data.batch(slice(start, min(start + 64, count)))
            total += float(reconstruction_error(self(entry, float_entry), target)) * len(entry)
        for rounding, v in zip(self.roundings, soft, strict=True):
            rounding.v.copy_(v)
        return total / count

    @torch.no_grad()
    def search_scales(self, data: BlockData, error: float) -> float:
        """Power-of-two scales by reconstruction error: each activation tries half and twice its scale.

        Args:
            data: What the block is tuned on.
            error: Its hard error as it is.

        Returns:
            Its hard error with the best scales, which the quantizers then have.
        """
        for quantizer in self.quantizers.values():
            if not quantizer.searched:
                continue
            best = start = quantizer.log2_scale.clone()
            for change in (-1.0, 1.0):
                quantizer.log2_scale.copy_(start + change)
                if (other := self.hard_error(data)) < error:
                    error, best = other, quantizer.log2_scale.clone()
            quantizer.log2_scale.copy_(best)
        return error


def reconstruction_error(
    output: Float[Tensor, "n c *positions"], target: Float[Tensor, "n c *positions"]
) -> Float32[Tensor, ""]:
    """Squared error, summed over channels, mean over images and positions."""
    return (output - target).float().square().sum(1).mean()
