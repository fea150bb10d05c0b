"""Methods and targets by name: from this package, from another one, and from a file."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.errors import InputError
from onnxdfq.methods import Method, Need, choose_method, load_method
from onnxdfq.recipe import Recipe
from onnxdfq.recipe.names import method_names, target_names

from ..graphs import DIGITS, REPOSITORY

STRANGE_METHOD = '''"""A method that somebody else wrote."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from onnxdfq.images.images import Images
from onnxdfq.methods.method import Synthesis


@dataclass(frozen=True, kw_only=True)
class Grey(Synthesis):
    """Images of one level. level: which, in the model's units."""

    name: ClassVar[str] = "grey"
    summary: ClassVar[str] = "images of one level"

    level: float = 0.5

    def refine(self, model, plan, target, images, run):
        """Biases go."""
        assert len(images.fixed(3)) == 3 and next(images.batches(2, seed=0)).shape == (2, 1, 8, 8)
        return replace(plan, biases={name: 0 * bias for name, bias in plan.biases.items()})

    def make(self, model, making):
        """See Synthesis."""
        random = np.random.default_rng(making.seed)
        pixels = self.level * random.uniform(0.5, 1.5, (making.count, 1, 8, 8)).astype(np.float32)
        return Images(pixels=pixels, method=self.name, seed=making.seed)
'''
STRANGE_METADATA = """Metadata-Version: 2.1
Name: strange
Version: 1
"""
STRANGE_ENTRY_POINTS = """[onnxdfq.methods]
grey = strange.grey:Grey

[onnxdfq.targets]
toaster = strange
"""


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder to put on the path: an installed package with a method and a target."""
    package, metadata = tmp_path / "site" / "strange", tmp_path / "site" / "strange-1.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    (package / "__init__.py").write_text("")
    (package / "grey.py").write_text(STRANGE_METHOD)
    text = files("onnxdfq.targets").joinpath("generic.toml").read_text(encoding="utf-8")
    (package / "toaster.toml").write_text(text.replace('title = "any reader of ONNX"', 'title = "a toaster"'))
    (metadata / "METADATA").write_text(STRANGE_METADATA)
    (metadata / "entry_points.txt").write_text(STRANGE_ENTRY_POINTS)
    return tmp_path / "site"


def test_a_method_and_a_target_of_another_package(strange: Path, tmp_path: Path) -> None:
    settings = ("-m", "grey", "--set", "grey.level=0.25", "--target", "toaster", "--images", "8")
    commands = [
        ("methods",),
        ("targets",),
        ("methods", "grey"),
        ("compress", str(DIGITS / "digits.onnx"), *settings, "-o", "q.onnx", "--json"),
        ("lint", "q.onnx", "--target", "toaster"),
    ]
    code = f"""
import sys
sys.path[:0] = [{str(strange)!r}, {str(REPOSITORY)!r}]
from onnxdfq.cli.main import main
for command in {commands!r}:
    main(command, standalone_mode=False)
    print("=" * 9)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    methods, targets, grey, written, linted, _ = run.stdout.split("=" * 9)
    assert "grey" in methods and "a toaster" in targets and "grey.level  float   0.5" in grey
    assert (json.loads(written)["method"], json.loads(written)["images"]) == ("grey", 8)
    biases = [
        numpy_helper.to_array(tensor)
        for node in onnx.load(tmp_path / "q.onnx").graph.node
        for tensor in onnx.load(tmp_path / "q.onnx").graph.initializer
        if node.op_type in ("Conv", "Gemm") and tensor.name == node.input[2]
    ]
    assert len(biases) > 5 and not any(bias.any() for bias in biases)
    assert "a toaster" in linted


def test_a_target_by_the_path_of_its_file(tmp_path: Path) -> None:
    text = files("onnxdfq.targets").joinpath("ort.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text.replace('title = "ONNX Runtime, CPU"', 'title = "my runtime"'))
    result = onnxdfq.compress(
        DIGITS / "digits.onnx",
        method="noise",
        images=8,
        target=[str(tmp_path / "mine.toml"), "ort"],
        output=tmp_path / "q.onnx",
    )
    assert list(result.targets) == ["mine", "ort"]
    assert (tmp_path / "q.mine.onnx").exists() and (tmp_path / "q.ort.onnx").exists()
    mine = onnxdfq.load_target(str(tmp_path / "mine.toml"))
    again = onnxdfq.compress(DIGITS / "digits.onnx", method="noise", images=8, target=mine, output=tmp_path / "r.onnx")
    assert again.targets["mine"].plan.fingerprint == result.targets["mine"].plan.fingerprint
    (tmp_path / "mine.toml").write_text(text.replace("opset = 25", "opsett = 25", 1))
    refused = CliRunner().invoke(main, ["targets", str(tmp_path / "absent.toml")])
    assert refused.exit_code == 2 and "there is no such file" in refused.stderr
    with pytest.raises(InputError, match="Did you mean 'opset'"):
        onnxdfq.load_target.__wrapped__(str(tmp_path / "mine.toml"))  # type: ignore[attr-defined]


def test_wrong_names_and_values_are_refused_before_torch_is_loaded() -> None:
    code = (
        "import json, sys, onnxdfq.cli.main as cli\n"
        "for arguments in json.load(sys.stdin):\n"
        "    sys.argv = ['onnxdfq', 'compress', 'm.onnx', *arguments]\n"
        "    try: cli.main()\n"
        "    except SystemExit as end: print(end.code, sorted({'torch', 'onnxruntime'} & set(sys.modules)))"
    )
    cases: list[tuple[list[str], str]] = [
        (["--method", "dhg"], "--method: Unknown method: 'dhg'. Did you mean 'dgh'?"),
        (["--target", "orrt"], "--target: Unknown target: 'orrt'. Did you mean 'ort'?"),
        (["--set", "dgh.stepz=3"], "--set: Unknown key in the settings of dgh: 'stepz'. Did you mean 'steps'?"),
        (["--set", "dgh.steps=many"], "--set: steps in the settings of dgh is 'many': it must be `int`, not `str`"),
        (["--set", "dgh"], "--set: 'dgh' is not of the form METHOD.FIELD=VALUE"),
        (["--set", "dhg.steps=3"], "--set: Unknown method: 'dhg'"),
        (["--bits", "w9a8"], "weights take 2 to 8 bits"),
        (["--scheme", "fre"], "--scheme: Unknown scheme: 'fre'. Did you mean 'free'?"),
        (["--images", "0"], "--images: images is 0; it must be at least 1"),
    ]
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([arguments for arguments, _ in cases]),
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )
    assert run.stdout.splitlines() == ["2 []"] * len(cases), run.stdout + run.stderr
    for line, (_, said) in zip(run.stderr.splitlines(), cases, strict=True):
        assert said in line


@pytest.mark.parametrize("name", method_names())
def test_auto_goes_by_needs_alone(name: str) -> None:
    """Whatever is registered: auto never takes what lacks a need, and takes nothing lesser than what has all."""
    kind = load_method(name)
    assert kind.name == name and kind.summary and set(kind.needs) <= set(Need)
    for met in (frozenset[Need](), kind.needs, frozenset(Need) - {Need.TWO_WIDTHS}, frozenset(Need)):
        bits = "w2/6" if Need.TWO_WIDTHS in met else "w8a8"
        chosen, reason = choose_method(Recipe(bits=bits), met)
        assert chosen.needs <= met and chosen.name in reason
        chosen.check(Recipe(bits=bits), [])
        if kind.priority and kind.needs <= met and (Need.TWO_WIDTHS in kind.needs) == (Need.TWO_WIDTHS in met):
            assert chosen.priority >= kind.priority


def test_auto_says_what_it_chose_and_why(tmp_path: Path) -> None:
    result = onnxdfq.compress(DIGITS / "digits.onnx", images=8, steps=1, output=tmp_path / "q.onnx")
    assert result.method == "dgh" and result.notes[0].startswith("method dgh: images whose statistics")
    assert "chosen as the model carries BatchNormalization" in result.notes[0]
    low = onnxdfq.compress(DIGITS / "digits.onnx", bits="w2/6", output=tmp_path / "l.onnx")
    assert low.method == "dfmpc" and "--bits has low and high widths" in low.notes[0]
    folded = onnxdfq.load(DIGITS / "digits.onnx")
    from passes.canonical.fold_batch_norm import FoldBatchNorm

    FoldBatchNorm()(folded)
    plain = onnxdfq.compress(folded, images=8)
    assert plain.method == "dead-leaves" and "Where BatchNormalization was folded" in plain.notes[0]
    assert "onnxdfq.export" in plain.notes[0] and "--calibration" in plain.notes[0]
    chosen = onnxdfq.compress(DIGITS / "digits.onnx", method="noise", images=8, output=tmp_path / "n.onnx")
    assert not any(note.startswith("method ") for note in chosen.notes)


def test_a_method_as_an_object_is_the_method_by_name(tmp_path: Path) -> None:
    common = {"images": 16, "bits": "w8a8"}
    by_name = onnxdfq.compress(
        DIGITS / "digits.onnx",
        method="dgh",
        steps=3,
        settings={"dgh": {"rate": 8}},
        output=tmp_path / "a.onnx",
        **common,  # type: ignore[arg-type]
    )
    by_object = onnxdfq.compress(
        DIGITS / "digits.onnx",
        method=onnxdfq.Dgh(steps=3, rate=8.0),
        output=tmp_path / "b.onnx",
        **common,  # type: ignore[arg-type]
    )
    assert by_name.targets["ort"].plan.fingerprint == by_object.targets["ort"].plan.fingerprint
    assert by_name.images is not None and by_object.images is not None
    assert by_name.images.provenance["settings"] == by_object.images.provenance["settings"]
    assert '"rate": 8' in by_object.images.provenance["settings"]


def test_targets_are_listed_with_what_they_rest_on() -> None:
    rows = json.loads(CliRunner().invoke(main, ["targets", "--json"]).stdout)["targets"]
    assert [row["name"] for row in rows] == target_names()
    one = json.loads(CliRunner().invoke(main, ["targets", "ort", "--json"]).stdout)
    assert one["opset"] == 25 and "Conv" in one["integer_operators"]
    assert issubclass(load_method("dgh"), Method)
