"""TOML that is broken, or made to do harm: one sentence, at once."""

import tomllib
from pathlib import Path

import pytest

from onnxdfq.errors import InputError
from onnxdfq.recipe import Recipe
from onnxdfq.recipe.bits import LayerBits
from onnxdfq.recipe.plan_file import PlanFile, plan_toml, read_plan
from onnxdfq.recipe.reading import parse_value, quoted, read_toml

DEEP, LONG, WIDE = "lie more than 8 deep in one another", "has thousands of digits", "has more than 64 bits"
CASES = {
    "a = " + "[" * 1000 + "]" * 1000: DEEP,
    "a = " + "{a = " * 1000 + "1" + "}" * 1000: DEEP,
    "a = " + "[" * 9 + "]" * 9: DEEP,
    "[" + ".".join("abcdefghij") + "]": DEEP,
    ".".join(["a"] * 20_000) + " = 1": "has more than 50 parts",
    "x = {" + ' . "a"' * 5000 + " = 1}": "cannot be read",
    "seed = " + "9" * 5000: LONG,
    "seed = 0x" + "f" * 5000: WIDE,
    "a = [18446744073709551616]": WIDE,
    "a = " + "x" * 2**20: r"bytes; at most 1,048,576 are read",
    "'\x1b[31m' = 1": r"invalid character '\\x1b'",
}


@pytest.mark.parametrize(("text", "said"), CASES.items(), ids=range(len(CASES)))
def test_what_no_recipe_holds(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"^The recipe .*a.toml .*{said}") as found:
        read_toml(path, "recipe")
    assert len(str(found.value)) < 600 and str(found.value).isprintable()


def test_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b'bits = "w8a8"\nmethod = "\xff"')
    with pytest.raises(InputError, match="it is not UTF-8 at byte 24"):
        read_toml(path, "recipe")
    path.write_bytes(b'\xef\xbb\xbfbits = "w4a8"\r\n')  # as an editor of Windows writes it
    assert Recipe.load(path).bits == "w4a8"


@pytest.mark.parametrize("text", ["9" * 5000, "0x" + "f" * 5000, "[" * 2000])
def test_values_on_the_command_line(text: str) -> None:
    with pytest.raises(InputError, match="is no value: "):
        parse_value(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("settings = 5", "settings in .* is 5; it must be a table for each method"),
        ("settings = {noise = 5}", "it must be a table for each method"),
        ("[settings.nois]", "Did you mean 'noise'"),
        ("noise = 5", "Unknown key in .*: 'noise'"),
        ("[[noise]]\nx = 1", "Unknown key in .*: 'noise'"),
        ("target = 5", "target in .* is 5"),
        ("target = [1]", r"target in .* is \[1\]"),
        ("images = 1979-05-27", r"images in .* is datetime.date\(1979, 5, 27\)"),
        ("seed = 18446744073709551615", WIDE),
        ("seed = 4294967296", "seed is 4294967296; it must be at least 0 and at most 4,294,967,295"),
    ],
)
def test_wrong_types(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(InputError, match=said):
        Recipe.load(tmp_path / "a.toml")


@pytest.mark.parametrize(
    "name", ["\x1b[31m\x7f\x9b", "\u202econv\u2066", '"\\', "\u2028\u200b\ufeff", "卷积", "\U000e0001"]
)
def test_names_of_layers_are_written_escaped_and_read_back(name: str, tmp_path: Path) -> None:
    text = plan_toml(PlanFile(layers={name: LayerBits(weight=4)}))
    assert text.replace("\n", "").isprintable()
    assert tomllib.loads(f"a = {quoted(name)}")["a"] == name
    (tmp_path / "plan.toml").write_text(text, encoding="utf-8")
    assert read_plan(tmp_path / "plan.toml").layers == {name: LayerBits(weight=4)}
