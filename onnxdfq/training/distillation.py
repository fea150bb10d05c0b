"""How far a student is from its teacher: at the outputs, and inside."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """The loss of one batch.

    KL divergence of softmax outputs at a temperature, of classes; of outputs that are no classes the squared error over
    their energy. Inner values add the same error of their own: by outputs alone, a network comes to agree on the images
    that it trains on in ways that hold for no others.

    Args:
        temperature: T.
        features: What an inner value's error counts; 0 leaves them out.

    Source: the fine-tuning of HAST, arXiv 2303.13826, with BRECQ's error in place of its energies of channels; without
    cross entropy, which harms (AIT, Choi et al., CVPR 2022).
    """

    temperature: float = 4.0
    features: float = 1.0

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
            taps: Inner values of the student.
            expected_taps: The teacher's.
        """
        parts = [
            self._divergence(one, other) if scored else relative_error(one, other)
            for one, other, scored in zip(outputs, expected, classes, strict=True)
        ]
        total = torch.stack(parts).sum()
        if self.features and taps:
            pairs = zip(taps, expected_taps, strict=True)
            total = total + self.features * torch.stack([relative_error(*pair) for pair in pairs]).sum()
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
