"""What to do to a model: bits, method and the choices around them; frozen, checked, in and out of TOML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from onnxdfq.errors import InputError
from onnxdfq.limits import BATCH, BLOCK, IMAGES, MINUTES, SEED, SHARE, SLICES, STEPS, check_bounds
from onnxdfq.recipe.bits import FLOAT_BITS, Bits
from onnxdfq.recipe.budget import Budgets
from onnxdfq.recipe.choices import CLIPPINGS, EFFORTS, ROUNDINGS, SCHEMES, TUNINGS, Clipping, Effort, Scales, Scheme
from onnxdfq.recipe.names import AUTO, method_names, one_of
from onnxdfq.recipe.reading import checked_fields, parse_value, read_toml, toml_value

Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the written bytes, beside the model itself and images of the user's own.

    method: a registered name, or "auto" for what the model allows. target: names of targets or paths of target files;
    one string names several between commas. images, steps, batch_size: of the synthesis; None leaves them to the
    effort, whose work is bounded. minutes: another bound, in minutes of two ordinary cores. tuning: None means by
    method and bits; train_slices: of each batch that it trains on, by itself, for workers to share; None is 1.
    equalize, split_channels: edits of the float graph before numbers are decided; equalize None means where weights
    below 8 bits lose most (`onnxdfq.pipeline.rewriting`). clipping: see
    `onnxdfq.calibration.thresholds`. normalize: None means not told (see `onnxdfq.images`). budget: "size=0.5MB" or
    "bops=1.2G": each layer gets bits of its own, `bits` at most; "drop=0.5": bits, or layers that stay float, such that
    no more points of the float model's classes change; or "size=0.5MB,drop=0.5". keep_float: patterns of what stays
    float (see `passes.quantize.kept_float`). block: of weights alone, how many inputs of a layer share a scale;
    rounding: theirs, to the nearest ("rtn") or so that later rows make up for earlier ones ("gptq"). settings: by
    method, values of its own fields; in a file, a table by the method's name.
    """

    method: str = AUTO
    bits: str = "w8a8"
    target: tuple[str, ...] = ("ort",)
    scheme: Scheme = "power-of-two"
    effort: Effort = "fast"
    minutes: Annotated[float | None, MINUTES] = None
    images: Annotated[int | None, IMAGES] = None
    steps: Annotated[int | None, STEPS] = None
    batch_size: Annotated[int | None, BATCH] = None
    seed: Annotated[int, SEED] = 0
    normalize: str | None = None
    shift_negative: bool = False
    budget: str | None = None
    keep_float: tuple[str, ...] = ()
    tuning: str | None = None
    train_slices: Annotated[int | None, SLICES] = None
    equalize: bool | None = None
    clipping: Clipping = "mse"
    split_channels: Annotated[float, SHARE] = 0.0
    block: Annotated[int | None, BLOCK] = None
    rounding: str = "rtn"
    settings: Settings = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", _names(self.target))
        Bits.parse(self.bits)
        if not self.target:
            raise InputError("There is no target; name at least one.", field="target")
        if self.budget is not None:
            Budgets.parse(self.budget)
        if self.tuning is not None:
            one_of("tuning", self.tuning, TUNINGS, field="tuning")
        one_of("scheme", self.scheme, SCHEMES, field="scheme")
        one_of("effort", self.effort, EFFORTS, field="effort")
        one_of("clipping", self.clipping, CLIPPINGS, field="clipping")
        one_of("rounding", self.rounding, ROUNDINGS, field="rounding")
        check_bounds(self)
        bits = Bits.parse(self.bits)
        if self.block is not None and (bits.activation != FLOAT_BITS or bits.low is not None):
            raise InputError(
                f"Blocks are for weights beside float activations, and --bits {self.bits} asks for others; ask for "
                "--bits w4a32 or w8a32.",
                field="block",
            )
        if self.block is not None and self.tuning not in (None, "none"):
            raise InputError(
                f"--tuning {self.tuning} has no form for blocks; leave it out, or ask for --rounding gptq.",
                field="tuning",
            )

    @property
    def scales(self) -> Scales:
        """What `scheme` comes to for scales alone."""
        return "free" if self.scheme == "paper" else self.scheme

    @classmethod
    def load(cls, path: Path) -> "Recipe":
        """Read a TOML file of `key = value` lines and, for settings of a method, a table by its name.

        Raises:
            InputError: an unknown key, or a value of a wrong type.
        """
        return cls.from_dict(read_toml(path, "recipe"), where=str(path))

    @classmethod
    def from_dict(cls, table: Mapping[str, Any], *, where: str) -> "Recipe":
        """A recipe from plain values; keys that are not given, or None, keep their defaults."""
        given = {key: value for key, value in table.items() if value is not None}
        own = {key: given.pop(key) for key in list(given) if isinstance(given[key], Mapping) and key != "settings"}
        for name in own:
            one_of(f"table in {where}", name, method_names(), field="settings")
        named = given.pop("settings", {})
        if not isinstance(named, Mapping) or not all(isinstance(part, Mapping) for part in named.values()):
            raise InputError(f"settings in {where} is {named!r}; it must be a table for each method.", field="settings")
        for name in named:
            one_of(f"table in {where}", name, method_names(), field="settings")
        settings = _merged(named, own)
        if "target" in given:
            given["target"] = _names(given["target"])
        return cls(**checked_fields(cls, given, where=where), settings=settings)

    def changed(self, table: Mapping[str, Any], *, where: str) -> "Recipe":
        """The recipe with plain values over its own; None changes nothing, and settings are merged field by field."""
        other = Recipe.from_dict(table, where=where)
        given = {key for key, value in table.items() if value is not None and not isinstance(value, Mapping)}
        values = {key: getattr(other, key) for key in given}
        return replace(self, **values, settings=_merged(self.settings, other.settings))

    def to_toml(self) -> str:
        """The recipe as a file that `load` reads back to the same recipe."""
        plain = [key for key in (entry.name for entry in fields(self)) if key != "settings"]
        values = {key: getattr(self, key) for key in plain}
        lines = [f"{key} = {toml_value(value)}\n" for key, value in values.items() if value is not None]
        for name, table in self.settings.items():
            lines += [f"\n[{name}]\n", *(f"{key} = {toml_value(value)}\n" for key, value in table.items())]
        return "".join(lines)


def parse_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Texts METHOD.FIELD=VALUE, as the command line gives them, by method and field.

    Raises:
        InputError: a text of another form, or an unknown method.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        place, equals, value = text.partition("=")
        method, dot, key = place.strip().partition(".")
        if not (equals and dot and key):
            raise InputError(f"{text!r} is not of the form METHOD.FIELD=VALUE, as in dgh.steps=200.", field="settings")
        one_of("method", method, method_names(), field="settings")
        found.setdefault(method, {})[key] = parse_value(value.strip())
    return found


def _names(given: Any) -> Any:
    """One string with commas, or several strings, as a tuple without repeats; anything else as it is."""
    if isinstance(given, str):
        given = given.split(",")
    if isinstance(given, list | tuple) and all(isinstance(name, str) for name in given):
        return tuple(dict.fromkeys(name.strip() for name in given if name.strip()))
    return given


def _merged(one: Settings, other: Settings) -> dict[str, dict[str, Any]]:
    return {name: {**one.get(name, {}), **other.get(name, {})} for name in (*one, *other)}
