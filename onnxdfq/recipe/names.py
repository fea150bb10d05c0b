"""Names that a user chooses among."""

import difflib
from collections.abc import Iterable

from onnxdfq.errors import InputError


def one_of(what: str, given: str, allowed: Iterable[str]) -> None:
    """Raises InputError that suggests the nearest name when `given` is not among `allowed`."""
    names = list(allowed)
    if given in names:
        return
    nearest = difflib.get_close_matches(given, names, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise InputError(f"Unknown {what}: {given!r}.{hint} Allowed: {', '.join(names)}.")
