"""How far a student is from its teacher: at the outputs, and inside."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from onnxdfq.workers.slices import Slices

Computed = Sequence[Float[Tensor, "..."]]
Network = Callable[[tuple[Tensor, ...]], Computed]


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
        *,
        energies: Float32[Tensor, "v"] | None = None,
        share: float = 1.0,
    ) -> Float32[Tensor, ""]:
        """A number whose gradients train.

        Args:
            outputs: The student's, each (N, ...).
            expected: The teacher's.
            classes: For each, whether it scores classes along axis 1.
            taps: Inner values of the student.
            expected_taps: The teacher's.
            energies: Of what is expected, outputs and taps behind them, over the batch that these are a slice of; None
                where they are all of it.
            share: Of the slice in the batch.
        """
        if energies is None:
            energies = energies_of([*expected, *expected_taps])
        parts = [
            share * self._divergence(one, other) if scored else _error(one, other, energy)
            for one, other, scored, energy in zip(outputs, expected, classes, energies[: len(outputs)], strict=True)
        ]
        total = torch.stack(parts).sum()
        if self.features and taps:
            triples = zip(taps, expected_taps, energies[len(outputs) :], strict=True)
            total = total + self.features * torch.stack([_error(*triple) for triple in triples]).sum()
        return total

    def losses(
        self,
        parts: Sequence[tuple[Tensor, ...]],
        slices: Slices,
        *,
        teacher: Network,
        student: Network,
        classes: Sequence[bool],
    ) -> Iterator[Float32[Tensor, ""]]:
        """Of a worker's own slices of one batch, whose sum over all slices is `loss` of the batch.

        Squared errors are over the energy of the whole batch, which all workers add up first: 4 bytes for each output
        and tap, for each slice.

        Args:
            parts: What both networks are fed, slice by slice.
            slices: Of the batch.
            teacher, student: Give outputs, and taps behind them. The teacher without gradients.
            classes: For each output, whether it scores classes along axis 1.

        Raises:
            SharedOutOfMemory, WorkerError: As `Slices.added`.
        """
        expected: list[Computed] = []

        def energies() -> Iterator[Float32[Tensor, "v"]]:
            for part in parts:
                expected.append(teacher(part))
                yield energies_of(expected[-1])

        whole, count = slices.added(energies()), len(classes)
        for rows, part, wanted in zip(slices.own, parts, expected, strict=True):
            found = student(part)
            yield self.loss(
                found[:count],
                wanted[:count],
                classes,
                found[count:],
                wanted[count:],
                energies=whole,
                share=slices.share(rows),
            )

    def _divergence(self, output: Float[Tensor, "n k *rest"], expected: Float[Tensor, "n k *rest"]) -> Tensor:
        t = self.temperature
        log_student = torch.log_softmax(output.float() / t, 1)
        log_teacher = torch.log_softmax(expected.float() / t, 1)
        each = (log_teacher.exp() * (log_teacher - log_student)).sum(1)
        return t * t * each.mean()


def relative_error(output: Float[Tensor, "..."], expected: Float[Tensor, "..."]) -> Float32[Tensor, ""]:
    """Squared error over the energy of what is expected."""
    return _error(output, expected, energies_of([expected])[0])


def energies_of(values: Computed) -> Float32[Tensor, "v"]:
    """Of each the sum of its squares."""
    return torch.stack([value.float().square().sum() for value in values])


def _error(
    output: Float[Tensor, "..."], expected: Float[Tensor, "..."], energy: Float32[Tensor, ""]
) -> Float32[Tensor, ""]:
    return (output.float() - expected.float()).square().sum() / energy.clamp_min(1e-12)
