"""What the tuning of each block found, kept as it goes, so that a run that was broken off goes on behind them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int8
from numpy.typing import NDArray
from torch import Tensor

from onnxdfq.tuning.activations import ActivationQuantizer
from onnxdfq.tuning.quantized import QdqGraph
from onnxdfq.tuning.reconstruction import Outcome
from onnxdfq.work.checkpoint import Checkpoint, shared
from onnxdfq.workers import ALONE, Workers

RANDOM = "random"


@dataclass(frozen=True, kw_only=True, eq=False)
class Settled:
    """How one block came out.

    integers, weight_scales: by weight; scales of those that were learned. log2_scales: by activation, of all that the
    block reads. biases: by layer.
    """

    integers: Mapping[str, Int8[NDArray[np.int8], "..."]]
    weight_scales: Mapping[str, Float32[NDArray[np.float32], "..."]]
    log2_scales: Mapping[str, Float32[Tensor, ""]]
    biases: Mapping[str, Float32[NDArray[np.float32], "_"]]
    outcome: Outcome

    def write(self, graph: QdqGraph, quantizers: Mapping[str, ActivationQuantizer]) -> None:
        """Put it into the graph, and let the quantizers stay as they are now."""
        own = {key: quantizers[key] for key in self.log2_scales}
        for key, quantizer in own.items():
            quantizer.log2_scale.data.copy_(self.log2_scales[key])
        if self.weight_scales:
            graph.write_weight_scales(self.weight_scales)
        scales = {key: quantizer.scale for key, quantizer in own.items() if quantizer.tunable}
        graph.write(self.integers, scales, self.biases)
        for quantizer in own.values():
            quantizer.freeze()

    def tensors(self) -> dict[str, Tensor]:
        """All numbers but the outcome, by "TABLE/NAME"."""
        arrays = {"integers": self.integers, "weight_scales": self.weight_scales, "biases": self.biases}
        found = {f"{table}/{name}": torch.from_numpy(one) for table, own in arrays.items() for name, one in own.items()}
        return found | {f"log2_scales/{name}": scale for name, scale in self.log2_scales.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], outcome: Outcome) -> "Settled":
        """From what `tensors` gave."""
        tables: dict[str, dict[str, Tensor]] = {
            table: {} for table in ("integers", "weight_scales", "biases", "log2_scales")
        }
        for name, tensor in tensors.items():
            table, _, own = name.partition("/")
            tables[table][own] = tensor
        integers, weight_scales, biases = (
            {name: tensor.numpy() for name, tensor in tables[table].items()}
            for table in ("integers", "weight_scales", "biases")
        )
        return cls(
            integers=integers,
            weight_scales=weight_scales,
            log2_scales=tables["log2_scales"],
            biases=biases,
            outcome=outcome,
        )


class Course:
    """The blocks that are tuned, in order.

    Args:
        checkpoint: Where they are kept; None keeps none. Of several workers only the first's is used.
        random: What the next block draws from; it is put where it was when the last kept block was done.
        workers: Who all tune these blocks.
    """

    def __init__(self, checkpoint: Checkpoint | None, random: torch.Generator, workers: Workers = ALONE) -> None:
        self._checkpoint, self._random = checkpoint, random
        self._tensors: dict[str, Tensor] = {}
        self._outcomes: list[Outcome] = []
        self._waiting = 0
        if (saved := shared(checkpoint, workers, done=None)) is None:
            return
        self._tensors = {name: tensor for name, tensor in saved.tensors.items() if name != RANDOM}
        self._outcomes = [Outcome(**one) for one in saved.facts["outcomes"]]
        random.set_state(saved.tensors[RANDOM])
        self._waiting = len(self._outcomes)

    def kept(self) -> Settled | None:
        """The next block as it was kept; None once there is no more."""
        if not self._waiting:
            return None
        number = len(self._outcomes) - self._waiting
        self._waiting -= 1
        prefix = f"{number}/"
        own = {name.removeprefix(prefix): one for name, one in self._tensors.items() if name.startswith(prefix)}
        return Settled.of(own, self._outcomes[number])

    def add(self, settled: Settled, *, last: bool) -> None:
        """Keep a block that was tuned; write where the last writing is old enough, or nothing comes behind it."""
        if self._checkpoint is None:
            return
        prefix = f"{len(self._outcomes)}/"
        self._tensors |= {prefix + name: tensor.clone() for name, tensor in settled.tensors().items()}
        self._outcomes.append(settled.outcome)
        if last or self._checkpoint.due:
            tensors = self._tensors | {RANDOM: self._random.get_state()}
            self._checkpoint.save(tensors, {"outcomes": [asdict(one) for one in self._outcomes]}, done=last)
