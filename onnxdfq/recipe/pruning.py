"""What to prune of a model, and how to repair it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from onnxdfq.errors import InputError
from onnxdfq.limits import SLICES, STEPS, Bounds, check_bounds
from onnxdfq.recipe.budget import Budget
from onnxdfq.recipe.choices import Statistics
from onnxdfq.recipe.distillation import KnowledgeDistillation
from onnxdfq.recipe.names import one_of

REPAIRS = ("moments", "least-squares", "distillation")
DEFAULT_REPAIRS = REPAIRS[:2]  # the third takes as long as training does
ON_IMAGES = REPAIRS[1:]
OF_DISTILLATION = ("train_steps", "train_slices", "statistics")
PATTERNS = ("2:4",)
WAYS = ("sparsity", "channels", "pattern", "budget")
MULTIPLE = 8  # of channels, which vector units and tensor cores take at once
SHARE_THAT_GOES = Bounds(least=0, most=1, above=True)


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """One of four, and its repair.

    sparsity: the share of each layer's weights that becomes zero. channels: the share of each layer's channels that is
    removed; multiple: of which each layer keeps one. pattern: "2:4", two of four neighbouring weights become zero.
    budget: what the model may cost without the channels that matter least, wherever they are. repair: in this order;
    none for an empty one. train_steps, train_slices, statistics: of distillation, see `KnowledgeDistillation`; None are
    its defaults.

    Raises:
        InputError: not one of the four is given, or a value is none that it takes, alone or beside the others.
    """

    sparsity: Annotated[float | None, SHARE_THAT_GOES] = None
    channels: Annotated[float | None, SHARE_THAT_GOES] = None
    pattern: str | None = None
    budget: Budget | None = None
    multiple: Annotated[int, Bounds(least=1, most=1024)] = MULTIPLE
    repair: tuple[str, ...] = DEFAULT_REPAIRS
    train_steps: Annotated[int | None, STEPS] = None
    train_slices: Annotated[int | None, SLICES] = None
    statistics: Statistics | None = None

    def __post_init__(self) -> None:
        given = [name for name in WAYS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(f"--{name}" for name in given) or "none of them"
            raise InputError(f"Pruning takes one of --sparsity, --channels, --pattern and --budget; {found} is given.")
        check_bounds(self)
        for name in OF_DISTILLATION:
            if getattr(self, name) is not None and "distillation" not in self.repair:
                raise InputError("Only distillation trains: name it with --repair, or leave this out.", field=name)
        _ = self.distillation  # which looks at what it is given
        if self.pattern is not None:
            one_of("pattern", self.pattern, PATTERNS, field="pattern")

    @property
    def looks_at_images(self) -> bool:
        """Whether the repair needs any, or the budget, which asks for the harm that channels do."""
        return any(name in ON_IMAGES for name in self.repair) or self.budget is not None

    @property
    def is_fitted(self) -> bool:
        """Whether least squares is among the repairs."""
        return "least-squares" in self.repair

    @property
    def distillation(self) -> KnowledgeDistillation:
        """The training, where distillation is among the repairs."""
        given = {name: value for name in OF_DISTILLATION if (value := getattr(self, name)) is not None}
        return KnowledgeDistillation(**given)

    def __str__(self) -> str:
        name = next(name for name in WAYS if getattr(self, name) is not None)
        return str(self.budget) if name == "budget" else f"{name}={getattr(self, name)}"


def parse_repair(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of repairs, in the order in which they are done; a string has them between commas, "none" is for none.

    Raises:
        InputError: an unknown name.
    """
    if given is None:
        return DEFAULT_REPAIRS
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
    for name in names:
        one_of("repair", name, ("none", *REPAIRS), field="repair")
    if "none" in names and len(names) > 1:
        raise InputError("none stands alone; leave it out beside other repairs.", field="repair")
    return tuple(name for name in REPAIRS if name in names)
