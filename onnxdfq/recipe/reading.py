"""Plain values, as TOML and keyword arguments give them, into checked dataclasses."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from onnxdfq.errors import InputError
from onnxdfq.paths import MOST_TEXT, read_ordinary
from onnxdfq.recipe.names import one_of

DEEPEST = 8  # tables and lists inside one another; a target file has three
MOST_DOTS = 50  # of a key; the time and memory that tomllib takes grow with their square
_LONG_KEY = re.compile(rf"""(?<![\w.-])(?:(?:"[^"\n]*+"|'[^'\n]*+'|[\w-]++)[ \t]*+\.[ \t]*+){{{MOST_DOTS},}}""")


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file.

    Args:
        what: "recipe", "plan" ..., for the message.

    Raises:
        InputError: the file cannot be read, or is no TOML, or holds more than such a file can mean.
    """
    try:
        return _parsed(read_ordinary(path, most=MOST_TEXT, called=f"The {what} {path}").decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"The {what} {path} cannot be read: it is not UTF-8 at byte {error.start}.") from error
    except ValueError as error:
        raise InputError(f"The {what} {path} cannot be read: {error}.") from error


def _parsed(text: str) -> dict[str, Any]:
    """A TOML document. Raises ValueError with a reason, without a stop."""
    if _LONG_KEY.search(text):
        raise ValueError(f"a key in it has more than {MOST_DOTS} parts")
    try:
        found = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"its tables or lists lie more than {DEEPEST} deep in one another") from error
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # of Python, which reads no longer one
        raise ValueError("a number in it has thousands of digits") from error
    waiting: list[tuple[Any, int]] = [(found, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError(f"its tables or lists lie more than {DEEPEST} deep in one another")
        if isinstance(value, int) and value.bit_length() > 63:
            raise ValueError("a whole number in it has more than 64 bits")
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting.extend((part, depth + 1) for part in inner)
    return found


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
        one_of(f"key in {where}", key, names)
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
    """A value as the command line gives it: as TOML would read it, else the text itself.

    Raises:
        InputError: TOML could read it, and it is no value that any setting has.
    """
    try:
        return _parsed(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise InputError(f"{text!r} is no value: {error}.", field="settings") from error


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
    """A basic string of TOML: quotes, backslashes and what cannot be printed escaped."""

    def escaped(letter: str) -> str:
        if letter.isprintable() and letter not in '"\\':
            return letter
        return f"\\u{ord(letter):04x}" if ord(letter) < 2**16 else f"\\U{ord(letter):08x}"

    return '"' + "".join(map(escaped, text)) + '"'


def _sentence(error: msgspec.ValidationError) -> str:
    """msgspec's message as the end of a sentence: "Expected `int`, got `str`" → "it must be `int`, not `str`"."""
    text = str(error).split(" - at ")[0]
    return text.replace("Expected ", "it must be ", 1).replace(" | null", "").replace(", got ", ", not ", 1)
