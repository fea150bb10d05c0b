"""Recipes and bits: what is read, what is refused, and how."""

from pathlib import Path

import pytest

from onnxdfq.errors import InputError
from onnxdfq.recipe import Bits, Recipe


@pytest.mark.parametrize(
    ("text", "weight", "activation"), [("w8a8", 8, 8), ("W4A8", 4, 8), ("w2a32", 2, 32), ("w3a16", 3, 16)]
)
def test_bits_are_read(text: str, weight: int, activation: int) -> None:
    assert Bits.parse(text) == Bits(weight=weight, activation=activation)
    assert str(Bits.parse(text)) == text.lower()


@pytest.mark.parametrize("text", ["4x8", "w8", "a8", "w8a8 b", "", "w4/8/2"])
def test_what_is_no_bits_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not of the form w4a8"):
        Bits.parse(text)


@pytest.mark.parametrize("text", ["w1a8", "w9a8", "w8a1", "w8a9", "w8a17"])
def test_impossible_bits_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"{text} is not possible: weights take 2 to 8 bits"):
        Bits.parse(text)


def test_a_recipe_comes_back_from_its_file(tmp_path: Path) -> None:
    recipe = Recipe(method="zeroq", bits="w4a4", images=64, seed=7, normalize="imagenet", shift_negative=True)
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert Recipe.load(tmp_path / "recipe.toml") == recipe


def test_a_misspelt_key_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('methd = "dgh"\n')
    with pytest.raises(InputError, match=r"'methd'. Did you mean 'method'\?"):
        Recipe.load(tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed = '1'", "it must be `int`, not `str`"),
        ("bits = 8", "it must be `str`, not `int`"),
        ("images = true", "it must be `int`, not `bool`"),
        ("images = 0", "at least 1"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "recipe.toml").write_text(line)
    with pytest.raises(InputError, match=message):
        Recipe.load(tmp_path / "recipe.toml")


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("= =")
    with pytest.raises(InputError, match="cannot be read"):
        Recipe.load(tmp_path / "recipe.toml")
    with pytest.raises(InputError, match=r"The recipe .*absent\.toml: there is no such file"):
        Recipe.load(tmp_path / "absent.toml")


def test_unknown_scheme_and_effort() -> None:
    with pytest.raises(InputError, match=r"Unknown scheme: 'fre'. Did you mean 'free'\?"):
        Recipe.from_dict({"scheme": "fre"}, where="here")
    with pytest.raises(InputError, match="Allowed: fast, standard, paper"):
        Recipe.from_dict({"effort": "slow"}, where="here")
