"""What to do to a model: bits, method and the choices around them; frozen, checked, in and out of TOML."""

import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from onnxdfq.errors import InputError
from onnxdfq.recipe.bits import Bits
from onnxdfq.recipe.budget import Budget
from onnxdfq.recipe.choices import CLIPPINGS, EFFORTS, SCHEMES, TUNINGS, Clipping, Effort, Scheme
from onnxdfq.recipe.names import one_of

DFQ, DFMPC = "dfq", "dfmpc"  # the methods that need no images
DFMPC_FORMS = ("best", "paper")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the written bytes, beside the model itself and images of the user's own.

    target: one, or several between commas. images, steps, batch_size: of the synthesis, None leaves them to the effort
    preset. tuning: None means by method and bits (see `settings.tuning_of`). equalize, split_channels: edits of the
    float graph before numbers are decided. clipping: see `calibration.thresholds`. normalize: None means not told (see
    `dataset`).
    dfmpc: "paper" for its very equations, "best" for what measured best.
    budget: "size=0.5MB" or "bops=1.2G": each layer gets bits of its own, `bits` at most (see `budget`).
    """

    method: str = "dgh"
    bits: str = "w8a8"
    target: str = "ort"
    scheme: Scheme = "power-of-two"
    effort: Effort = "fast"
    images: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    seed: int = 0
    normalize: str | None = None
    shift_negative: bool = False
    budget: str | None = None
    tuning: str | None = None
    equalize: bool = False
    clipping: Clipping = "mse"
    split_channels: float = 0.0
    dfmpc: str = "best"

    def __post_init__(self) -> None:
        bits = Bits.parse(self.bits)
        if (bits.low is not None) != (self.method == DFMPC):
            raise InputError(
                f"--method {self.method} does not take --bits {self.bits}: dfmpc takes low and high bits (w2/6, w3/6, "
                "w2/6a8), and only dfmpc does."
            )
        one_of("dfmpc", self.dfmpc, DFMPC_FORMS)
        if self.budget is not None:
            Budget.parse(self.budget)
        if self.tuning is not None:
            one_of("tuning", self.tuning, TUNINGS)
        one_of("scheme", self.scheme, SCHEMES)
        one_of("effort", self.effort, EFFORTS)
        one_of("clipping", self.clipping, CLIPPINGS)
        if not 0 <= self.split_channels <= 1:
            raise InputError(f"split_channels is {self.split_channels}; it is a share of the channels, 0 to 1.")
        for name in ("images", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1.")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; it must be at least 0.")

    @property
    def targets(self) -> tuple[str, ...]:
        """The names in `target`, each once."""
        return tuple(dict.fromkeys(name.strip() for name in self.target.split(",")))

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Read a TOML file of `key = value` lines. Raises InputError for an unknown key or a value of a wrong type."""
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"The recipe {path} cannot be read: {error}.") from error
        return cls.from_dict(table, where=str(path))

    @classmethod
    def from_dict(cls, table: dict[str, Any], *, where: str) -> "Recipe":
        """A recipe from plain values; keys that are not given keep their defaults."""
        kinds: dict[str, type] = dict.fromkeys(("images", "steps", "batch_size", "seed"), int)
        kinds |= {"shift_negative": bool, "equalize": bool, "split_channels": float}
        known = [field.name for field in fields(cls)]
        for key, value in table.items():
            one_of(f"key in {where}", key, known)
            kind = kinds.get(key, str)
            if type(value) is not kind:
                raise InputError(f"{key} in {where} is {value!r}; it must be of type {kind.__name__}.")
        return cls(**table)

    def to_toml(self) -> str:
        """The recipe as a file that `load` reads back to the same recipe."""
        lines = []
        for key, value in asdict(self).items():
            if value is not None:
                quoted = f'"{value}"' if isinstance(value, str) else str(value).lower()
                lines.append(f"{key} = {quoted}\n")
        return "".join(lines)
