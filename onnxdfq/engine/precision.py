"""The floating-point type that a device computes fastest in."""

import torch

from onnxdfq.recipe.choices import Precision


def resolve_precision(device: torch.device, precision: Precision) -> torch.dtype:
    """The floating-point type for a precision of the recipe.

    "auto" is bfloat16 on devices with instructions for it, else float32: without them bfloat16 is the slower of the
    two.
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
