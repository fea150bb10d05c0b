"""Plain values, as TOML and keyword arguments give them, into checked dataclasses."""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from onnxdfq.errors import InputError
from onnxdfq.recipe.names import one_of


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file.

    Args:
        what: "recipe", "plan" ..., for the message.

    Raises:
        InputError: the file cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"The {what} {path} cannot be read: {error}.") from error


def checked_fields(kind: type, table: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The values of `table` as the fields of the dataclass `kind` want them.

    Lists become tuples and whole numbers pass for floats; nothing else is converted.

    Raises:
        InputError: a key is no field (the message suggests the nearest), or a value is of another type than its field.
    """
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    found = {}
    for key, value in table.items():
        one_of(f"key in {where}", key, names, field=key)
        if get_origin(hints[key]) is Literal and isinstance(value, str):
            one_of(key, value, get_args(hints[key]), field=key)
        try:
            found[key] = msgspec.convert(value, hints[key], strict=True)
        except msgspec.ValidationError as error:
            raise InputError(f"{key} in {where} is {value!r}: {_sentence(error)}.", field=key) from error
    return found


def missing_fields(kind: type, table: Mapping[str, Any]) -> list[str]:
    """The fields of the dataclass `kind` that have no default and are not in `table`, sorted."""
    needed = [field.name for field in fields(kind) if field.default is field.default_factory is MISSING]
    return sorted(set(needed) - set(table))


def parse_value(text: str) -> Any:
    """A value as the command line gives it: as TOML would read it, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def toml_value(value: Any) -> str:
    """A plain value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return str(value)


def quoted(text: str) -> str:
    """A basic string of TOML: control characters, quotes and backslashes escaped."""
    escaped = [f"\\u{ord(letter):04x}" if ord(letter) < 32 or letter in '"\\\x7f' else letter for letter in text]
    return '"' + "".join(escaped) + '"'


def _sentence(error: msgspec.ValidationError) -> str:
    """msgspec's message as the end of a sentence: "Expected `int`, got `str`" → "it must be `int`, not `str`"."""
    text = str(error).split(" - at ")[0]
    return text.replace("Expected ", "it must be ", 1).replace(" | null", "").replace(", got ", ", not ", 1)
