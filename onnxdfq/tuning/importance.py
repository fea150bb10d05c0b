"""What an error of a block's channels does to the outputs of the network."""

from collections.abc import Sequence

import onnx_ir as ir
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.errors import InputError

IMAGES = 128  # that it is measured on


def channel_importance(
    model: ir.Model,
    name: str,
    found: Float[Tensor, "n c ..."],
    exact: Float[Tensor, "n c ..."],
    outputs: Sequence[tuple[str, bool]],
    *,
    device: torch.device,
) -> Float32[Tensor, "c"] | None:
    """How strongly the outputs' error answers to each channel of an inner value, 1 on average.

    w_c = mean |dL / dz_c| over images and positions, L the KL divergence of classes, or the squared error of other
    outputs, between the network behind `exact` and behind `found`; the rest of the network is float.

    Args:
        model: Float.
        name: Of the value.
        found: The value as the quantized network makes it, before its block is tuned.
        exact: As the float network makes it.
        outputs: Names of the outputs, and whether each scores classes.
        device: Where it runs.

    Returns:
        None where the outputs do not follow from this value alone, or do not answer to it.

    Source: PD-Quant, arXiv 2212.07048, whose loss this takes to first order; BRECQ, arXiv 2102.05426, Eq. 10.
    """
    try:
        rest = TorchGraph(model, inputs=[name], outputs=[output for output, _ in outputs]).to(device)
    except InputError:
        return None
    total: Tensor | None = None
    for start in range(0, min(IMAGES, len(found)), 32):
        rows = slice(start, start + 32)
        value = found[rows].to(device, torch.float32).requires_grad_()
        with torch.no_grad():
            wanted = rest(exact[rows].to(device, torch.float32))
        loss = torch.zeros((), device=device)
        for (_, classes), one, other in zip(outputs, rest(value), wanted, strict=True):
            if classes:
                loss = loss + torch.nn.functional.kl_div(
                    one.log_softmax(1), other.log_softmax(1), reduction="sum", log_target=True
                )
            else:
                loss = loss + (one - other).square().sum()
        if not loss.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(loss, value)
        part = gradient.abs().transpose(0, 1).flatten(1).sum(1)
        total = part if total is None else total + part
    if total is None or not float(total.sum()) > 0 or not bool(torch.isfinite(total).all()):
        return None
    return total / total.mean()
