"""How far a student is from its teacher: at the outputs, and by how strongly each channel of inner values answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """The loss of one batch.

    KL divergence of softmax outputs at a temperature, of classes; of outputs that are no classes the squared error over
    their energy. Inner values add the squared distance of their channels' energies, each image's normalised.

    Args:
        temperature: T.
        features: Weight of the term of inner values; 0 leaves it out.

    Source: HAST, arXiv 2303.13826, its fine-tuning; without cross entropy, which harms (AIT, Choi et al., CVPR 2022).
    """

    temperature: float = 4.0
    features: float = 0.0

    def loss(
        self,
        outputs: Sequence[Float[Tensor, "..."]],
        expected: Sequence[Float[Tensor, "..."]],
        classes: Sequence[bool],
        taps: Sequence[Float[Tensor, "..."]] = (),
        expected_taps: Sequence[Float[Tensor, "..."]] = (),
    ) -> Float32[Tensor, ""]:
        """A number whose gradients train.

        Args:
            outputs: The student's, each (N, ...).
            expected: The teacher's.
            classes: For each, whether it scores classes along axis 1.
            taps: Inner values of the student, each (N, C, ...).
            expected_taps: The teacher's.
        """
        parts = [
            self._divergence(one, other) if scored else relative_error(one, other)
            for one, other, scored in zip(outputs, expected, classes, strict=True)
        ]
        total = torch.stack(parts).sum()
        if self.features:
            pairs = zip(taps, expected_taps, strict=True)
            total = total + self.features * torch.stack([_energy_distance(*pair) for pair in pairs]).sum()
        return total

    def _divergence(self, output: Float[Tensor, "n k *rest"], expected: Float[Tensor, "n k *rest"]) -> Tensor:
        t = self.temperature
        log_student = torch.log_softmax(output.float() / t, 1)
        log_teacher = torch.log_softmax(expected.float() / t, 1)
        each = (log_teacher.exp() * (log_teacher - log_student)).sum(1)
        return t * t * each.mean()


def relative_error(output: Float[Tensor, "..."], expected: Float[Tensor, "..."]) -> Float32[Tensor, ""]:
    """Squared error over the energy of what is expected."""
    difference = (output.float() - expected.float()).square().sum()
    return difference / expected.float().square().sum().clamp_min(1e-12)


def _energy_distance(value: Float[Tensor, "n c ..."], expected: Float[Tensor, "n c ..."]) -> Tensor:
    one, other = _energies(value), _energies(expected)
    return (one - other).square().sum(1).mean() / one.shape[1]


def _energies(value: Float[Tensor, "n c ..."]) -> Float32[Tensor, "n c"]:
    energies = value.float().square().flatten(2).mean(2) if value.ndim > 2 else value.float().square()
    return torch.nn.functional.normalize(energies, dim=1)
