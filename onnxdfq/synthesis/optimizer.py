"""RAdam over images, and the plateau schedule that goes with it."""

import math

import torch
from torch import Tensor

BETA1, BETA2 = 0.9, 0.999
TINY = 1e-20  # the loss of a whole set gives one pixel a gradient of 1e-8 and less: torch's 1e-8 would be half of it


def rectification(step: int) -> float:
    """Step size factor of RAdam (arXiv 1908.03265, Algorithm 2) with the second moment's bias correction; 0 while the
    variance of the adaptive rate is not yet tractable (the first five steps)."""
    rho_max = 2 / (1 - BETA2) - 1
    decay = BETA2**step
    rho = rho_max - 2 * step * decay / (1 - decay)
    if rho <= 5:
        return 0.0
    variance = ((rho - 4) * (rho - 2) * rho_max) / ((rho_max - 4) * (rho_max - 2) * rho)
    return math.sqrt(variance * (1 - decay))


class RAdam:
    """State of one batch's images."""

    def __init__(self, images: Tensor, mode="pixel", dtype=torch.float32) -> None:
        self.mode=mode
        self._momentum = torch.zeros_like(images, dtype=dtype)
        self._square = torch.zeros_like(images) if mode=="pixel" else images.new_zeros(images.shape[0], images.shape[1] if mode=="channel" else 1, 1, 1)
        self._step = 0

    def update(self, images: Tensor, grad: Tensor, rate: float) -> None:
        """images (N, C, H, W) in place."""
        self._step += 1
        self._momentum.lerp_(grad.to(self._momentum.dtype), 1 - BETA1)
        sq=grad.square()
        if self.mode=="channel": sq=sq.mean((2,3),keepdim=True)
        if self.mode=="image": sq=sq.mean((1,2,3),keepdim=True)
        self._square.lerp_(sq, 1 - BETA2)
        factor = rectification(self._step)
        if factor:
            step = rate * factor / (1 - BETA1**self._step)
            images.addcdiv_(self._momentum.float(), self._square.sqrt().clamp_min(TINY), value=-step)


class Plateau:
    """Halve the rate when the loss has not fallen by 1e-4 of itself for `patience` visits.

    After each halving the best loss is forgotten, so that a rate is judged by what it reaches itself.
    """

    def __init__(self, *, rate: float, patience: int, least: float = 1e-4) -> None:
        self.rate = rate
        self._patience = patience
        self._least = least
        self._best = math.inf
        self._bad = 0

    def observe(self, loss: float) -> None:
        if self._best == math.inf or loss < self._best - 1e-4 * abs(self._best):
            self._best, self._bad = loss, 0
            return
        self._bad += 1
        if self._bad > self._patience:
            self.rate = max(self.rate * 0.5, self._least)
            self._best, self._bad = math.inf, 0
