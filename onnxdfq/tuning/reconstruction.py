"""The optimisation of one block: AdaRound's, with QDrop's mixing."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from onnxdfq.errors import InputError
from onnxdfq.tuning.activations import RandomMasks
from onnxdfq.tuning.block import BlockData, TunedBlock, reconstruction_error
from onnxdfq.workers import ALONE, Workers
from onnxdfq.workers.slices import Slices

FIRST_EXPONENT, LAST_EXPONENT = 20.0, 2.0
CHECKS = 20  # of whether the weights are rounded already
# A block stops when at most this share of its weights is soft: what it gains after that is below 1 % of its error.
# That the error stands still is no sign before: until the exponent is small it often does, or rises, and a block that
# stopped then would lose most of what it gains (ResNet-20, w4a4: 0.98 to 1.04 of the start for three quarters of the
# steps, 0.84 at the end).
SOFT_SHARE = 5e-3


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one block came out: its hard error (see `TunedBlock`) before and after, and how many steps that took."""

    before: float
    after: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """AdaRound (arXiv 2004.10568) over a layer or a block (BRECQ, arXiv 2102.05426; QDrop, arXiv 2203.05740).

    Minimises the squared error of the block's output plus `penalty` * sum(1 - |2h - 1|^b) by Adam (AdaRound, Eq. 24).
    The penalty sets in after `warm_up` of the steps, with b falling from 20 to 2.

    Args:
        steps: Of the optimiser, at most.
        batch_size: Images of one step.
        rate: Learning rate of the roundings; it stays.
        scale_rate: That of learned activation scales, as a relative change; it falls along a cosine.
        factor_rate: That of learned weight scales, in log2; it falls along a cosine.
        bias_rate: That of biases, in units of the layer's root mean square bias; it falls along a cosine.
        penalty: Weight of the term that drives h to 0 or 1.
        warm_up: Share of the steps before it.
        drop: Share of activations that keep their float value.
        slices: Of a batch, each looked at by itself, so that as many workers share a step; to the same gradient but
            for rounding.

    Raises:
        InputError: Masks of QDrop, which are drawn for a whole batch, are to be drawn for several slices.
    """

    steps: int
    batch_size: int = 32
    rate: float = 1e-2
    scale_rate: float = 4e-3
    factor_rate: float = 1e-3
    bias_rate: float = 1e-3
    penalty: float = 0.01
    warm_up: float = 0.2
    drop: float = 0.0
    slices: int = 1

    def __post_init__(self) -> None:
        if self.drop and self.slices > 1:
            raise InputError(
                f"QDrop's masks are drawn for a whole batch, and {self.slices} slices of one are asked for; take 1 "
                "slice, or leave drop at 0."
            )

    def run(
        self,
        block: TunedBlock,
        data: BlockData,
        before: float,
        generator: torch.Generator,
        workers: Workers = ALONE,
    ) -> Outcome:
        """Tune in place; every weight ends rounded. A block that did not improve is put back to what it was.

        Args:
            block: On the device of the data.
            data: What it is tuned on.
            before: Its hard error as it is.
            generator: Of the batches.
            workers: Who share each step, and come to the same; errors each of them measures.

        Raises:
            WorkerError: Another worker failed or hangs.
        """
        biases = list(block.biases.values())
        scales = [q.log2_scale for q in block.quantizers.values() if q.log2_scale.requires_grad]
        roundings = [rounding.v for rounding in block.roundings]
        changes = [rounding.change for rounding in block.roundings if rounding.change.requires_grad]
        start = [tensor.detach().clone() for tensor in (*roundings, *scales, *changes, *biases)]
        optimizer = torch.optim.Adam(
            [{"params": roundings, "lr": self.rate}, {"params": scales, "lr": self.scale_rate}]
            + [{"params": changes, "lr": self.factor_rate}]
            + [{"params": [bias], "lr": self.bias_rate * typical_size(bias)} for bias in biases]
        )
        falling = [(group, group["lr"]) for group in optimizer.param_groups[1:]]
        masks = RandomMasks(1 - self.drop, generator.initial_seed(), data.device, data.dtype) if self.drop else None
        for quantizer in block.quantizers.values():
            quantizer.masks = masks
        step, every = 0, max(1, self.steps // CHECKS)
        for step in range(1, self.steps + 1):
            share = step / self.steps
            for group, rate in falling:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * share))
            index = torch.randperm(len(data), generator=generator)[: self.batch_size]
            slices = Slices(size=len(index), wanted=self.slices, workers=workers)
            losses = self._losses(block, data, share, index, slices)
            slices.backward(losses, [each for group in optimizer.param_groups for each in group["params"]])
            optimizer.step()
            if step % every == 0 and _soft_share(roundings) <= SOFT_SHARE:
                break  # biases and scales could still move, but no longer by much
        for quantizer in block.quantizers.values():
            quantizer.masks = None
        for rounding in block.roundings:
            rounding.harden()
        after = block.hard_error(data)
        if not after < before:
            with torch.no_grad():
                for tensor, old in zip((*roundings, *scales, *changes, *biases), start, strict=True):
                    tensor.copy_(old)
            for rounding in block.roundings:
                rounding.harden()
            after = before
        return Outcome(before=before, after=after, steps=step)

    def _losses(
        self, block: TunedBlock, data: BlockData, share: float, index: Int64[Tensor, "n"], slices: Slices
    ) -> Iterator[Float32[Tensor, ""]]:
        """Of this worker's slices. The first slice of a batch alone has the penalty, which knows no images."""
        after_warm_up = (share - self.warm_up) / (1 - self.warm_up)
        for rows in slices.own:
            entry, float_entry, target = data.batch(index[rows])
            loss = slices.share(rows) * reconstruction_error(block(entry, float_entry), target)
            if rows.start == 0 and after_warm_up > 0:
                exponent = FIRST_EXPONENT + (LAST_EXPONENT - FIRST_EXPONENT) * after_warm_up
                loss = loss + self.penalty * sum(rounding.penalty(exponent) for rounding in block.roundings)
            yield loss


def typical_size(tensor: Float[Tensor, "..."]) -> float:
    """Root mean square."""
    return float(tensor.detach().square().mean().sqrt())


@torch.no_grad()
def _soft_share(roundings: Sequence[Float[Tensor, "..."]]) -> float:
    """The share of weights that are not rounded yet, given V: h(V) is 0 or 1 beyond |V| = log(11)."""
    return float((torch.cat([v.flatten() for v in roundings]).abs() <= math.log(11)).float().mean())
