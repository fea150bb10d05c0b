"""Zoos by paths and by their file."""

from pathlib import Path

import pytest

from onnxdfq.errors import InputError
from onnxdfq.recipe.zoo import Member, read_zoo


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_files_and_members_together(tmp_path: Path) -> None:
    write(tmp_path / "labels.toml", "order = [2, 0, 1]\n")
    zoo = write(
        tmp_path / "zoo.toml",
        '[[model]]\npath = "a.onnx"\nnormalize = "imagenet"\n[[model]]\npath = "b.onnx"\nlabels = "labels.toml"\n',
    )
    own = Member(path=Path("d.onnx"), normalize="none")
    assert read_zoo(["c.onnx", zoo, own]) == (
        Member(path=Path("c.onnx")),
        Member(path=tmp_path / "a.onnx", normalize="imagenet"),
        Member(path=tmp_path / "b.onnx", order=(2, 0, 1)),
        own,
    )
    assert read_zoo([]) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no models"),
        ("model = 3\n", "names no models"),
        ("[[models]]\n", "Unknown key in .*'models'. Did you mean 'model'"),
        ('[[model]]\nnormalize = "none"\n', r"\[\[model\]\] 1 has no path; its keys are path, normalize, labels"),
        ('[[model]]\npath = "a"\nnormalise = "none"\n', "Did you mean 'normalize'"),
        ("[[model]]\npath = 3\n", "path in .* is 3: it must be `str`"),
        ('[[model]]\npath = "a"\nlabels = "twice.toml"\n', r"holds no order of labels.*each of the numbers"),
        ('[[model]]\npath = "a"\nlabels = "words.toml"\n', "holds no order of labels"),
        ('[[model]]\npath = "a"\nlabels = "missing.toml"\n', "there is no such file"),
        ('[[model]]\npath = "a"\nlabels = "other.toml"\n', "Unknown key in .*'places'"),
    ],
)
def test_a_file_that_is_no_zoo_is_refused_in_one_sentence(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "twice.toml", "order = [0, 1, 1]\n")
    write(tmp_path / "words.toml", 'order = ["cat", "dog"]\n')
    write(tmp_path / "other.toml", "places = [0]\n")
    with pytest.raises(InputError, match=message):
        read_zoo([write(tmp_path / "zoo.toml", text)])
