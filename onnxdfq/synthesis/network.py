"""The network as a synthesis method sees it: image in, statistics' tensors and outputs out."""

from contextlib import AbstractContextManager
from typing import Literal

import onnx_ir as ir
import torch
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.errors import NoBatchNorm
from onnxdfq.synthesis.feeds import Feeds
from onnxdfq.synthesis.statistics import Targets
from passes.batch_norm import folded_batch_norms, read_batch_norms

Precision = Literal["auto", "float32", "bfloat16"]


def no_batch_norm(model: ir.Model, method: str) -> NoBatchNorm:
    """The error that a method which lives on running statistics raises for a model that carries none."""
    folded = folded_batch_norms(model)
    if folded:
        some = ", ".join(folded[:3]) + (", ..." if len(folded) > 3 else "")
        found = f"the model holds no BatchNormalization; it was folded at export (seen at {some})"
    else:
        found = "the model holds no BatchNormalization: it was folded at export, or the network was built without"
    return NoBatchNorm(
        f"{method} reads the running statistics of BatchNormalization, and {found}. Export again with "
        "onnxdfq.export(module, example, path), or torch.onnx.export(..., dynamo=False, "
        "training=TrainingMode.PRESERVE, do_constant_folding=False), or torch.onnx.export(..., dynamo=True, "
        "optimize=False). Without BatchNormalization these still work: --method noise, and --calibration FILE with "
        "images of your own."
    )


class TappedNetwork:
    """An ONNX model that returns the input of every BatchNormalization beside its float outputs.

    precision "auto" computes in bfloat16 where the hardware multiplies it natively, else in float32; moments are
    float32 either way. Inputs other than the image are zeros. Raises NoBatchNorm, ShapeError, UnsupportedOperator.
    """

    def __init__(self, model: ir.Model, *, method: str, device: str, precision: Precision) -> None:
        batch_norms = read_batch_norms(model)
        if not batch_norms:
            raise no_batch_norm(model, method)
        self.device = torch.device(device)
        self._feeds = Feeds(model)
        self.targets = Targets.of(
            [torch.tensor(norm.mean, dtype=torch.float32, device=self.device) for norm in batch_norms],
            [torch.tensor(norm.var, dtype=torch.float32, device=self.device) for norm in batch_norms],
        )
        names = list(dict.fromkeys(norm.value for norm in batch_norms))  # two layers may normalise one value
        self._tap_of_layer = [names.index(norm.value) for norm in batch_norms]
        outputs = [str(value.name) for value in model.graph.outputs if value.dtype and value.dtype.is_floating_point()]
        names += [name for name in outputs if name not in names]
        self._output_slots = [names.index(name) for name in outputs]
        self._graph = TorchGraph(model, outputs=names).to(self.device).eval()
        self._dtype = resolve_precision(self.device, precision)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the image input."""
        return self._feeds.image_shape

    def batch_sizes(self, count: int, batch_size: int) -> list[int]:
        """Sizes of the batches that hold `count` images. All are full, and there may be more images, where the model
        runs at one batch size only."""
        if self._feeds.batch is not None:
            return [self._feeds.batch] * -(-count // self._feeds.batch)
        return [min(batch_size, count - start) for start in range(0, count, batch_size)]

    @property
    def precision(self) -> str:
        """What "auto" came to: "float32" or "bfloat16"."""
        return str(self._dtype).removeprefix("torch.")

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """images (N, C, H, W) float32 in the model's units -> L inputs of BN (N, C_l, *), float outputs (N, *)."""
        image = images.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            values = self._graph(*self._feeds.of(self._graph, image))
        return [values[tap] for tap in self._tap_of_layer], [values[slot] for slot in self._output_slots]

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._dtype is torch.bfloat16)


def resolve_precision(device: torch.device, precision: Precision) -> torch.dtype:
    """The compute type. bfloat16 on a CPU without its own instructions for it is slower than float32."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
