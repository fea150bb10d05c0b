"""Tuning on the QDQ graph: AdaRound layer by layer, BRECQ block by block. A plan in, a better plan out."""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch

from onnxdfq.engine.cache import Cache
from onnxdfq.engine.operation import is_native
from onnxdfq.engine.precision import resolve_precision
from onnxdfq.errors import InputError
from onnxdfq.images.samples import SamplesLike
from onnxdfq.progress import Progress
from onnxdfq.tuning.activations import ActivationQuantizer
from onnxdfq.tuning.block import BlockData, TunedBlock
from onnxdfq.tuning.blocks import Block, find_blocks, find_layers
from onnxdfq.tuning.course import Course, Settled
from onnxdfq.tuning.prefix import NotByImage, Prefix
from onnxdfq.tuning.quantized import QdqGraph
from onnxdfq.tuning.reconstruction import Outcome, Reconstruction
from onnxdfq.work.checkpoint import Checkpoint
from onnxdfq.workers import ALONE, Workers
from passes.quantize.plan import QuantPlan, TensorQuant
from passes.target.target import Target

__all__ = ["EFFORTS", "TunedPart", "Tuning", "tuning_for"]

logger = logging.getLogger(__name__)

# Few steps need a high rate: of 0.01, 0.03 and 0.1 at 300 steps, and with or without QDrop's mixing, the settings of
# `fast` gave the logits of ResNet-20 at w2a4 the best signal to noise on DGH images that were not tuned on (6.5, 7.2,
# 7.5 dB; with mixing 6.7 at 0.03). The product of steps and rate stays.
EFFORTS = {
    "fast": Reconstruction(steps=300, rate=1e-1),
    "standard": Reconstruction(steps=1000, rate=3e-2),
    "paper": Reconstruction(steps=20000, rate=1.5e-3),
}
FINE_BITS = 8  # activations of fewer bits have scales worth a search, and weights roundings worth a training
# ONNX Runtime's integer Softmax computes with 1 / scale rounded down (qlinear_softmax.cc): at a scale of 1 / 20.7 all
# its outputs come out 3 % too small. Before tuning the scale is a power of two, whatever the scheme.
WHOLE_RECIPROCAL = frozenset({"Softmax"})


@dataclass(frozen=True, kw_only=True)
class TunedPart:
    """A block and how it came out."""

    block: Block
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Tunes what a plan rounds: weights up or down, activation scales, biases.

    Args:
        by_block: Whether whole blocks are tuned (BRECQ, arXiv 2102.05426), or one layer at a time (AdaRound, arXiv
            2004.10568).
        learn_scales: Whether activation scales below 8 bits may take any value, and are learned; otherwise they stay
            powers of two, and half and twice are tried.
        reconstruction: The optimisation of one block.
        learn_weight_scales: Whether scales of weights may take any value and train with the roundings (GENIE-M).
    """

    by_block: bool
    learn_scales: bool
    reconstruction: Reconstruction
    learn_weight_scales: bool = False

    def check(self, images: int) -> None:
        """Raises InputError when so few images do not fill a batch."""
        least = self.reconstruction.batch_size
        if images < least:
            raise InputError(
                f"Tuning takes batches of {least} images and there are {images}; give at least {least} (--images), or "
                "--tuning none."
            )

    def tune(
        self,
        model: ir.Model,
        plan: QuantPlan,
        target: Target,
        pixels: SamplesLike,
        *,
        reference: ir.Model | None = None,
        seed: int = 0,
        device: str = "cpu",
        progress: Progress | None = None,
        checkpoint: Checkpoint | None = None,
        workers: Workers = ALONE,
    ) -> tuple[QuantPlan, tuple[TunedPart, ...]]:
        """A better plan: blocks are tuned in graph order, each on what the tuned blocks before it make of the images,
        towards what the float network makes of them.

        Args:
            model: The float graph that the plan is for; it is only read.
            plan: Where tuning starts.
            target: As for `QdqGraph`.
            pixels: In the model's input units.
            reference: The float network that is approximated, where `model` holds integers of the plan already: the
                same nodes, other numbers.
            seed: Of batches and masks.
            device: Where the network runs.
            progress: Called after each block.
            checkpoint: Where it goes on from, and keeps the blocks that are done; of several workers the first's.
            workers: Who share the steps of each block, and all get the same plan.

        Returns:
            The tuned plan, and its blocks in graph order.

        Raises:
            InputError: There are fewer images than a batch takes, or the checkpoint cannot be read.
            OutputError: The checkpoint cannot be written.
            WorkerError: Another worker failed or hangs.
        """
        self.check(len(pixels))
        blocks = [part for block in self._blocks(model) for part in self._quantized(model, block, plan)]
        where, dtype = torch.device(device), resolve_precision(torch.device(device), "auto")
        graph = QdqGraph(model, plan, target, reference=reference)
        tied = bool(plan.bias_quants)  # all scales of such a plan hang together
        whole = whole_reciprocals(model)
        quantizers = {
            key: self._quantizer(quant, tied=tied, whole_reciprocal=key in whole).to(where)
            for key, quant in plan.activations.items()
        }
        generator = torch.Generator().manual_seed(seed)
        blocking = {node.name or "" for node in model.graph if not is_native(node)}  # no gradient passes them
        parts: list[TunedPart] = []
        course = Course(checkpoint, generator, workers)
        with Cache() as cache:
            floats, tuned = (Prefix(part, pixels, cache, where) for part in (reference or model, graph.model))
            waiting = deque(blocks)
            while waiting:
                block = waiting.popleft()
                if blocking.intersection(block.nodes):
                    waiting.extendleft(reversed(self._layers_of(model, block)))
                    continue
                entry = graph.float_name(block.entry)
                try:
                    data = BlockData(
                        entry=tuned.value(entry),
                        float_entry=floats.value(block.entry),
                        float_exit=floats.value(block.exit),
                        device=where,
                        dtype=dtype,
                    )
                except NotByImage:  # a channel shuffle may begin with it; one layer in it need not
                    waiting.extendleft(reversed(self._layers_of(model, block)))
                    continue
                tuned.keep(entry, data.entry)
                floats.keep(block.exit, data.float_exit)
                settled = course.kept()
                if settled is None:
                    settled = self._tune(graph, block, quantizers, data, generator, workers)
                    course.add(settled, last=not waiting)
                settled.write(graph, quantizers)
                outcome = settled.outcome
                parts.append(TunedPart(block=block, outcome=outcome))
                logger.debug(
                    "%s %s, weights %s: error %.4g to %.4g in %d steps",
                    block.kind,
                    block.exit,
                    ", ".join(block.weights),
                    outcome.before,
                    outcome.after,
                    outcome.steps,
                )
                if progress is not None:
                    note = f"{block.kind} {block.exit}: error {outcome.before:.3g} to {outcome.after:.3g}"
                    progress(len(parts), len(parts) + len(waiting), note)
        return graph.plan(), tuple(parts)

    def _tune(
        self,
        graph: QdqGraph,
        block: Block,
        quantizers: dict[str, ActivationQuantizer],
        data: BlockData,
        generator: torch.Generator,
        workers: Workers,
    ) -> Settled:
        learn = self.learn_weight_scales
        roundings = {name: graph.rounding(name, learn_scale=learn) for name in block.weights}
        unit = TunedBlock(graph, block, roundings, quantizers, dtype=data.dtype).to(data.device)
        before = unit.search_scales(data, unit.hard_error(data))
        outcome = self.reconstruction.run(unit, data, before, generator, workers)
        after = unit.search_scales(data, outcome.after)
        return Settled(
            integers={name: rounding.integers() for name, rounding in roundings.items()},
            weight_scales={name: rounding.channel_scales() for name, rounding in roundings.items()} if learn else {},
            log2_scales={key: quantizer.log2_scale.detach() for key, quantizer in unit.quantizers.items()},
            biases={layer: bias.detach().cpu().numpy() for layer, bias in unit.biases.items()},
            outcome=replace(outcome, after=after),
        )

    def _blocks(self, model: ir.Model) -> Sequence[Block]:
        return find_blocks(model) if self.by_block else find_layers(model)

    def _quantized(self, model: ir.Model, block: Block, plan: QuantPlan) -> list[Block]:
        """The block, or of one with a weight that stays float the layers whose weights do not."""
        if set(block.weights) <= plan.weights.keys():
            return [block]
        return [layer for layer in self._layers_of(model, block) if set(layer.weights) <= plan.weights.keys()]

    def _layers_of(self, model: ir.Model, block: Block) -> list[Block]:
        """The single layers of a block that cannot be tuned whole; none of a single layer."""
        if len(block.weights) < 2:
            return []
        return [layer for layer in find_layers(model) if set(layer.weights) <= set(block.weights)]

    def _quantizer(self, quant: TensorQuant, *, tied: bool, whole_reciprocal: bool) -> ActivationQuantizer:
        # a Clip that is carried out on the integers ties the scale to the Clip's bounds
        tunable = quant.bits < FINE_BITS and quant.clip is None and not tied
        return ActivationQuantizer(
            quant,
            learned=tunable and self.learn_scales,
            searched=tunable and not self.learn_scales,
            whole_reciprocal=whole_reciprocal,
        )


def whole_reciprocals(model: ir.Model) -> set[str]:
    """Names of the activations whose scale has to be one over a whole number."""
    return {value.name or "" for node in model.graph for value in node.outputs if node.op_type in WHOLE_RECIPROCAL}


def tuning_for(
    name: str | None,
    *,
    weight_bits: int,
    learn_scales: bool,
    learn_weight_scales: bool,
    effort: str,
    slices: int = 1,
) -> Tuning | None:
    """The tuning of this name; by default none at 8 bits and BRECQ below.

    Args:
        name: "adaround", "brecq", "none", or None for the default.
        weight_bits: The least width of a weight.
        learn_scales, learn_weight_scales: As for `Tuning`.
        effort: A key of `EFFORTS`.
        slices: As for `Reconstruction`.

    Returns:
        None for "none".
    """
    if name is None:
        name = "brecq" if weight_bits < FINE_BITS else "none"
    if name == "none":
        return None
    return Tuning(
        by_block=name == "brecq",
        learn_scales=learn_scales,
        learn_weight_scales=learn_weight_scales,
        reconstruction=replace(EFFORTS[effort], slices=slices),
    )
