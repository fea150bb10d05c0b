"""What is shown of a file's own texts."""

import unicodedata

import pytest

from onnxdfq.errors import InputError
from onnxdfq.shown import LONGEST_LINE, LONGEST_WORD, sentence, shortened
from passes.graph.text import printable

CONTROLS = [chr(code) for code in (*range(32), *range(127, 160))]
TURNS_AND_HIDES = [chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0x200B, 0x2010))]
SEPARATORS = ["\u2028", "\u2029", "\ufeff", "\ud800", "\U000e0001"]


@pytest.mark.parametrize("letter", CONTROLS + TURNS_AND_HIDES + SEPARATORS, ids=ascii)
def test_what_controls_a_terminal_is_escaped(letter: str) -> None:
    shown = printable(f"conv{letter}1")
    assert shown.isascii() and shown.isprintable() and shown.startswith("conv\\") and shown.endswith("1")
    assert printable(shown) == shown


@pytest.mark.parametrize("name", ["卷积层", "Größe", "слой", "→ ×", "e\u0301", "a b\\n"])
def test_letters_of_all_languages_stay(name: str) -> None:
    assert printable(name) == name


def test_every_character_that_is_left_is_one_to_look_at() -> None:
    kept = {unicodedata.category(chr(code))[0] for code in range(0x110000) if printable(chr(code)) == chr(code)}
    assert kept == {"L", "M", "N", "P", "S", "Z"}
    assert [code for code in range(0x110000) if chr(code).isspace() and printable(chr(code)) == chr(code)] == [32]


def test_an_error_is_one_short_line() -> None:
    text = str(InputError(f"the node {'x' * 10**6} and\n\x1b[2J" + " word" * 10**5))
    assert len(text) <= LONGEST_LINE and text.isprintable()
    assert f"{'x' * 10}…{'x' * 10}" in text and "\\x1b[2J" not in sentence("fine")
    assert len(max(text.split(), key=len)) <= LONGEST_WORD


@pytest.mark.parametrize(("most", "found"), [(10, "0123456789"), (9, "01234…789"), (4, "01…9")])
def test_shortened(most: int, found: str) -> None:
    assert shortened("0123456789", most) == found
