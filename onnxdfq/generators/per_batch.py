"""A generator for one batch of images, which learns together with its latent vectors."""

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

from onnxdfq.generators.preparing import seeded
from onnxdfq.generators.trunk import trunk
from onnxdfq.synthesis.input_range import InputRange
from onnxdfq.synthesis.losses import absolute_distance, image_prior
from onnxdfq.synthesis.network import TappedNetwork
from onnxdfq.synthesis.statistics import image_moments

DECAY, DECAYS = 0.95, 40  # of the generator's rate, and how often
PATIENCE, FALL, LEAST_RATE = 1 / 40, 0.1, 1e-4  # of the latent vectors' rate; patience is a share of the steps


class Distilled:
    """One batch on its way to the statistics that a network remembers.

    Args:
        network: Float.
        scale: From standardised pixels to the model's units.
        count: Images.
        random: Draws the latent vectors, and the generator's first weights.
        steps, latent, width, generator_rate, latent_rate, relative: See `methods.genie.Genie`.

    Source: GENIE, Jeon et al., arXiv 2212.04780, §3.1, and its public code for rates and schedules.
    """

    def __init__(
        self,
        network: TappedNetwork,
        scale: InputRange,
        count: int,
        random: torch.Generator,
        *,
        steps: int,
        latent: int,
        width: int,
        generator_rate: float,
        latent_rate: float,
        relative: bool,
    ) -> None:
        self._network, self._scale, self._relative = network, scale, relative
        self._limits = scale.limits(network.device)
        self._latent = torch.randn(count, latent, generator=random).to(network.device).requires_grad_()
        seed = int(torch.randint(2**31, (), generator=random))
        self._trunk = seeded(seed, lambda: trunk(network.planes, latent, 1, width=width))
        self._trunk.to(network.device)
        self._labels = torch.ones(count, 1, device=network.device)
        self._centre = torch.zeros(network.planes[0], device=network.device)
        of_latent = torch.optim.Adam([self._latent], lr=latent_rate)
        of_trunk = torch.optim.Adam(self._trunk.parameters(), lr=generator_rate)
        self._optimizers = of_latent, of_trunk
        patience = max(1, int(PATIENCE * steps))
        self._plateau = ReduceLROnPlateau(of_latent, factor=FALL, patience=patience, min_lr=LEAST_RATE)
        self._decay = ExponentialLR(of_trunk, DECAY ** (DECAYS / steps))

    def step(self) -> float:
        """Train both once; the loss as it was before."""
        loss = self._loss()
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self._optimizers:
            optimizer.step()
        found = float(loss.detach())
        self._plateau.step(found)
        self._decay.step()
        return found

    @torch.no_grad()
    def images(self) -> Float32[Tensor, "n c h w"]:
        """In the model's units."""
        return self._scale.to_model(self._standardised()).cpu()

    def _standardised(self) -> Float32[Tensor, "n c h w"]:
        return torch.clamp(self._trunk(self._latent, self._labels), *self._limits)

    def _loss(self) -> Float32[Tensor, ""]:
        """The batch's statistics in each layer, and each image as one more layer of mean 0 and deviation 1."""
        images = self._standardised()
        taps, _ = self._network.forward(self._network.given(self._scale.to_model(images)))
        first, second = self._network.moments(taps)
        targets = self._network.targets
        layers = targets.distance(first, second) if self._relative else absolute_distance(targets, first, second)
        pixels = image_prior(*(moment.flatten() for moment in image_moments(images, self._centre))) / len(images)
        return layers + pixels / len(targets.channels)
