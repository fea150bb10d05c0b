"""Activation functions."""

import torch
import torch.nn.functional as F
from torch import Tensor


def Relu(x: Tensor) -> Tensor:
    return torch.relu(x)


def LeakyRelu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def PRelu(x: Tensor, slope: Tensor) -> Tensor:
    """Written out: torch's own takes one slope per channel, ONNX's broadcasts."""
    return torch.where(x < 0, slope * x, x)


def ThresholdedRelu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.threshold(x, alpha, 0.0)


def Elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


def Celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


def Selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    return gamma * F.elu(x, alpha)


def Gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def Sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


def HardSigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def HardSwish(x: Tensor) -> Tensor:
    return F.hardswish(x)


def Tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


def Softplus(x: Tensor) -> Tensor:
    return F.softplus(x)


def Softsign(x: Tensor) -> Tensor:
    return F.softsign(x)


def Mish(x: Tensor) -> Tensor:
    return F.mish(x)


def Swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


def Shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


def Softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, dim=axis)


def LogSoftmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, dim=axis)


def Hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """One at the first greatest element along the axis, zero elsewhere."""
    return torch.zeros_like(x).scatter(axis, x.argmax(dim=axis, keepdim=True), 1.0)
