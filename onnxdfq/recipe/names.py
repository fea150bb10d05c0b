"""Names that a user chooses among: methods, targets, and what else has a fixed set of values."""

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from onnxdfq.errors import InputError

METHODS, TARGETS = "onnxdfq.methods", "onnxdfq.targets"
"""Groups of entry points: a package adds a method or a target by naming it in one of them."""
AUTO = "auto"


@cache
def registered(group: str) -> Mapping[str, EntryPoint]:
    """What installed packages offer in a group, by name, sorted.

    Args:
        group: METHODS or TARGETS.

    Read from the packages' metadata; nothing is imported, so that names can be checked before torch is loaded.
    """
    return {entry.name: entry for entry in sorted(entry_points(group=group), key=lambda entry: entry.name)}


def method_names() -> list[str]:
    """All methods, sorted."""
    return list(registered(METHODS))


def target_names() -> list[str]:
    """All targets, sorted."""
    return list(registered(TARGETS))


def one_of(what: str, given: str, allowed: Iterable[str], *, field: str | None = None) -> None:
    """Check that a name is among those allowed.

    Args:
        what: what the name is of, for the message.
        field: the field of a recipe, or the argument, that it was given for.

    Raises:
        InputError: the name is none; the message suggests the nearest.
    """
    names = list(allowed)
    if given in names:
        return
    nearest = difflib.get_close_matches(given, names, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise InputError(f"Unknown {what}: {given!r}.{hint} Allowed: {', '.join(names)}.", field=field)
