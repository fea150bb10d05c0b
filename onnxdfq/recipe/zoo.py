"""A zoo: the models that images are made by, where these are others than the one that the images are for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from onnxdfq.errors import InputError
from onnxdfq.recipe.names import one_of
from onnxdfq.recipe.reading import checked_fields, read_toml

TABLES = "model"
"""Each `[[model]]` of a zoo.toml is one member."""
ORDER = "order"


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model of a zoo.

    path: of its file. normalize: how its inputs were normalised; None for what the file itself tells (`dfq.norm`), else
    for what its first BatchNormalization does. order: place k holds the model's own number of the zoo's class k; None
    where they are the same.
    """

    path: Path
    normalize: str | None = None
    order: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A `[[model]]` as it is written; paths are meant from the folder of the file."""

    path: str
    normalize: str | None = None
    labels: str | None = None


def read_zoo(given: Sequence[Path | str | Member]) -> tuple[Member, ...]:
    """The members that paths name: of models, or of TOML files with a table `[[model]]` for each.

    Its keys: path; normalize, as `--normalize` takes it; labels, the path of a TOML file with `order = [...]`, which at
    place k names the model's own number of the zoo's class k. The classes of the zoo are those of a member without.

    Raises:
        InputError: a file cannot be read, has another key, or an order that is none.
    """
    return tuple(member for one in given for member in _members(one))


def _members(given: Path | str | Member) -> Iterator[Member]:
    if isinstance(given, Member):
        yield given
    elif Path(given).suffix == ".toml":
        yield from _from_file(Path(given))
    else:
        yield Member(path=Path(given))


def _from_file(path: Path) -> Iterator[Member]:
    table = read_toml(path, "zoo")
    for key in table:
        one_of(f"key in {path}", key, [TABLES], field="zoo")
    entries = table.get(TABLES)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path} names no models: it needs a table [[{TABLES}]] with a path for each.", field="zoo")
    for number, values in enumerate(entries, 1):
        where = f"{path}, [[{TABLES}]] {number}"
        entry = _entry(values, where)
        order = None if entry.labels is None else _order(path.parent / entry.labels)
        yield Member(path=path.parent / entry.path, normalize=entry.normalize, order=order)


def _entry(values: dict[str, Any], where: str) -> _Entry:
    try:
        found = checked_fields(_Entry, values, where=where)
    except InputError as error:
        raise InputError(str(error), field="zoo") from error
    if "path" not in found:
        raise InputError(f"{where} has no path; its keys are {', '.join(f.name for f in fields(_Entry))}.", field="zoo")
    return _Entry(**found)


def _order(path: Path) -> tuple[int, ...]:
    table = read_toml(path, "order of labels")
    for key in table:
        one_of(f"key in {path}", key, [ORDER], field="zoo")
    order = table.get(ORDER)
    whole = isinstance(order, list) and all(isinstance(place, int) and not isinstance(place, bool) for place in order)
    if not whole or not order or sorted(order) != list(range(len(order))):
        raise InputError(
            f"{path} holds no order of labels: it needs {ORDER} = [...] with each of the numbers 0, 1, 2 ... once.",
            field="zoo",
        )
    return tuple(order)
