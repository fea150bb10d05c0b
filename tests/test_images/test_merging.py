"""Shards of a synthesis, merged to the file that one run writes; and what does not belong together."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.errors import DataError, InputError
from onnxdfq.images.images import Images
from onnxdfq.images.merging import Merged
from onnxdfq.methods import DeadLeaves, Dgh, Genie, Mixmix, Noise, ZeroQ
from onnxdfq.methods.method import Method
from onnxdfq.recipe.shard import Shard

from ..graphs import DIGITS, build
from ..slow import all_but, slow

MODEL = DIGITS / "digits.onnx"
NOISE = Noise(batch_size=4)


def made(folder: Path, *shards: str, model: Path = MODEL, **settings: Any) -> None:
    """Shards of 14 images in 4 batches, each in a file of its own."""
    folder.mkdir(exist_ok=True)
    given: dict[str, Any] = {"method": NOISE, "images": 14} | settings
    for shard in shards:
        output = folder / f"{shard.replace('/', 'of')}.npz"
        onnxdfq.synthesize(model, output=output, shard=shard, **given)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three") / "shards"
    made(folder, "1/3", "2/3", "3/3")
    return folder


@pytest.fixture
def shards(three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "shards"))


@pytest.mark.parametrize(
    "method",
    [
        NOISE,
        slow(DeadLeaves(steps=2, batch_size=4)),
        slow(ZeroQ(steps=2, batch_size=4)),
        slow(Genie(steps=2, batch_size=4, latent=8, width=4)),
        slow(Mixmix(steps=2, batch_size=4)),
    ],
    ids=lambda method: method.name,
)
def test_merged_shards_are_the_file_of_one_run(method: Method, tmp_path: Path) -> None:
    made(tmp_path / "shards", "3/3", "1/3", "2/3", method=method)
    made(tmp_path, "1/1", method=method)
    merged = tmp_path / "merged.npz"
    images = onnxdfq.merge_images(tmp_path / "shards", output=merged)
    assert len(images) == 14
    assert merged.read_bytes() == (tmp_path / "1of1.npz").read_bytes()


def test_other_inputs_and_tokens_are_shared_out_too(tmp_path: Path) -> None:
    """Of a model of tokens, and of one with a second input."""
    texts = {
        "tokens": "(int64[N,5] x, float[N,2] z) => (float[N,5] y) { c = Cast <to=1> (x)  s = ReduceSum (z, axis)"
        "  y = Add (c, s) }",
        "image": "(float[N,1,8,8] x, float[N,2] z) => (float[N,1,8,8] y) { s = Cast <to=1> (z)"
        "  t = ReduceSum (s, axis)  u = Reshape (t, shape)  y = Add (x, u) }",
    }
    for name, text in texts.items():
        model = tmp_path / f"{name}.onnx"
        ir.save(build(text, axis=np.array([1]), shape=np.array([-1, 1, 1, 1])), model)
        made(tmp_path / name, "1/2", "2/2", model=model)
        made(tmp_path, "1/1", model=model)
        onnxdfq.merge_images(tmp_path / name, output=tmp_path / "merged.npz", force=True)
        assert (tmp_path / "merged.npz").read_bytes() == (tmp_path / "1of1.npz").read_bytes()
        (tmp_path / "1of1.npz").unlink()


@pytest.mark.slow
def test_shards_that_depend_on_their_images_are_told_of(tmp_path: Path) -> None:
    method = Dgh(steps=1, batch_size=4)
    result = onnxdfq.synthesize(MODEL, method=method, images=9, shard="2/3")
    assert any("dgh has the images of each shard match the model's statistics by themselves" in n for n in result.notes)
    made(tmp_path / "shards", "1/3", "2/3", "3/3", method=method, images=9)
    images = onnxdfq.merge_images(tmp_path / "shards")
    assert len(images) == 9 and images.provenance["shards"] == "3" and "shard" not in images.provenance
    assert result.images is not None
    assert np.array_equal(images.pixels[4:8], result.images.pixels)


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: (folder / "2of3.npz").unlink(), "lacks the shard 2/3; make it with synthesize --shard"),
    "twice": (
        lambda folder: shutil.copy(folder / "2of3.npz", folder / "again.npz"),
        "2of3.npz and .*again.npz are both the shard 2/3; take one of them away",
    ),
    "seed": (
        lambda folder: ((folder / "2of3.npz").unlink(), made(folder, "2/3", seed=1)),
        "2of3.npz was made with the seed 1, and .*1of3.npz with the seed 0; make all shards by the same command",
    ),
    "settings": (
        lambda folder: ((folder / "2of3.npz").unlink(), made(folder, "2/3", images=13)),
        "2of3.npz was made with the recipe [0-9a-f]{16}, and .*1of3.npz with the recipe",
    ),
    "number": (
        lambda folder: ((folder / "2of3.npz").unlink(), made(folder, "2/4")),
        "made in a number of shards of 4, and .*in a number of shards of 3",
    ),
    "none": (
        lambda folder: onnxdfq.synthesize(MODEL, method=NOISE, images=2, output=folder / "whole.npz"),
        "whole.npz is no shard; those are written by synthesize with --shard K/N",
    ),
    "empty": (lambda folder: [file.unlink() for file in folder.iterdir()], "is no folder with .npz files"),
}


@pytest.mark.parametrize("what", all_but(REFUSALS, list(REFUSALS)[::3]))
def test_shards_that_do_not_belong_together_are_refused(what: str, shards: Path) -> None:
    spoil, said = REFUSALS[what]
    spoil(shards)
    with pytest.raises(DataError, match=said):
        onnxdfq.merge_images(shards, output=shards.parent / "merged.npz")
    assert not (shards.parent / "merged.npz").exists()


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("rows", "3:8", "2of3.npz has other images than a shard 2/3 has; make it anew"),
        ("rows", "x:8", "The rows of a shard are 'x:8'; it was changed"),
        ("shard", "x", "2of3.npz is no shard: 'x' is no shard; give it as K/N"),
        ("onnxdfq", "9", "2of3.npz was made by onnxdfq 9, and .*1of3.npz by onnxdfq 0"),
        ("model", "f" * 16, "2of3.npz was made for the model ffffffffffffffff, and"),
        ("threads", "77", "2of3.npz was made with threads 77, and"),
    ],
)
def test_a_shard_that_was_changed_is_refused(entry: str, value: str, said: str, shards: Path) -> None:
    file = shards / "2of3.npz"
    images = Images.load(file)
    images.provenance[entry] = value
    images.save(file)
    with pytest.raises(DataError, match=said):
        onnxdfq.merge_images(shards)


def test_a_shard_that_changes_meanwhile_is_refused(shards: Path) -> None:
    merged, file = Merged.of(shards), shards / "2of3.npz"
    Images.load(file).first(2).save(file)
    with pytest.raises(DataError, match=r"2of3.npz was changed while it was read\."):
        merged.save(shards.parent / "merged.npz")
    with pytest.raises(DataError, match="changed"):
        _ = merged.images


def test_what_is_merged_in_memory_is_what_lies_in_the_file(shards: Path) -> None:
    images = onnxdfq.merge_images(shards, output=shards.parent / "merged.npz")
    images.save(shards.parent / "again.npz")
    assert (shards.parent / "merged.npz").read_bytes() == (shards.parent / "again.npz").read_bytes()


def test_the_command_merges_once(shards: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["images", "merge", str(shards), "-o", *arguments])

    output = shards.parent / "merged.npz"
    done = run(str(output))
    assert done.exit_code == 0 and "written: " in done.output and len(Images.load(output)) == 14
    again = run(str(output))
    assert again.exit_code == 2 and "exists; give another name with -o, or --force" in again.output
    assert run(str(output), "--force", "--json").output.startswith('{"output": ')
    among = run(str(shards / "merged.npz"))
    assert among.exit_code == 2 and "would lie among the shards" in among.output


@pytest.mark.parametrize("text", ["3", "0/3", "4/3", "a/b", "1/0", "1/-2", "1/99999999", "1//2"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="shard"):
        Shard.parse(text)


def test_shards_of_equal_size_cover_all() -> None:
    parts = [Shard(number, 3).part(7, "batches") for number in (1, 2, 3)]
    assert [(part.start, part.stop) for part in parts] == [(0, 2), (2, 4), (4, 7)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": NOISE, "shard": "1/5"}, "made in 4 batches, of which 5 shards cannot each have one; take fewer"),
        ({"method": "gdfq", "shard": "1/2"}, "gdfq trains one generator for all images"),
        ({"method": NOISE, "shard": "1/2", "files": 2}, "leave --files out"),
    ],
)
def test_shards_that_cannot_be_made_are_refused(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        onnxdfq.synthesize(MODEL, images=14, output=tmp_path / "no", **given)
    assert not list(tmp_path.iterdir())
