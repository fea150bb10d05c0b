"""The floating-point type that a device computes fastest in."""

import torch

from onnxdfq.recipe.choices import Precision


def resolve_precision(device: torch.device, precision: Precision) -> torch.dtype:
    """The type to compute in: as asked for, or by "auto" bfloat16 where that is native, else float32.

    On a CPU without instructions of its own for bfloat16, it is slower than float32.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
