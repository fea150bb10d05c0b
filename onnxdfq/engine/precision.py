"""What a device computes fastest in: its floating-point type, and the order of numbers in memory."""

import torch
from jaxtyping import Shaped
from torch import Tensor

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


def computing_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """A context in which products of matrices and convolutions are computed in `dtype`; nothing else for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16)


def channels_last(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Of rank 4 with channels last in memory, on which convolutions take half the time on a CPU."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
