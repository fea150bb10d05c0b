"""How a float student is trained against its teacher."""

from dataclasses import dataclass
from typing import Annotated

from onnxdfq.errors import InputError
from onnxdfq.limits import BATCH, RATE, SHARE, SLICES, STEPS, WEIGHT, Bounds, check_bounds
from onnxdfq.recipe.choices import OPTIMIZERS, STATISTICS, OptimizerName, Statistics
from onnxdfq.recipe.names import one_of

RATES = {"sgd": 0.1, "adam": 2e-3}
REPAIR_RATES = {"batch": 0.01, "fixed": 0.001}
"""Of SGD, by `statistics`, for what was trained before."""


@dataclass(frozen=True, kw_only=True)
class KnowledgeDistillation:
    """Settings of a training.

    train_steps: None is by effort. train_batch: images of a step. train_slices: of them, each looked at by itself, so
    that as many workers share a step. optimizer: "sgd" (with Nesterov's momentum), "adam", or None for SGD on fixed
    images and Adam on a generator's. rate: of it, at the start of half a cosine; None is 0.1 for SGD, a tenth of that
    for a pruned student, a hundredth where its statistics are fixed, and 2e-3 for Adam. weight_decay: None is 5e-4 for
    SGD and 0 for Adam. temperature: of the answers' divergence. features: weight of inner values of equal shapes.
    statistics: "batch", whose statistics run along, or "fixed". momentum: share of each batch in the running ones.
    augmented: whether fixed images are mirrored, moved and mixed.

    Raises:
        InputError: a value is none that its field takes.
    """

    train_steps: Annotated[int | None, STEPS] = None
    train_batch: Annotated[int, BATCH] = 64
    train_slices: Annotated[int, SLICES] = 1
    optimizer: OptimizerName | None = None
    rate: Annotated[float | None, RATE] = None
    weight_decay: Annotated[float | None, SHARE] = None
    temperature: Annotated[float, Bounds(least=0, most=1000, above=True)] = 3.0
    features: Annotated[float, WEIGHT] = 1.0
    statistics: Statistics = "batch"
    momentum: Annotated[float, Bounds(least=0, most=1, above=True)] = 0.1
    augmented: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.optimizer is not None:
            one_of("optimizer", self.optimizer, OPTIMIZERS, field="optimizer")
        one_of("statistics", self.statistics, STATISTICS, field="statistics")
        if self.train_slices > 1 and self.statistics == "batch":
            raise InputError(
                f"BatchNormalizations that train by the batch see all of it, and --train-slices {self.train_slices} "
                "cuts it; add --statistics fixed, or leave --train-slices out.",
                field="train_slices",
            )
