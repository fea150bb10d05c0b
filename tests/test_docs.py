"""The pages: each command in them runs, each figure comes from a results file, and they are built without a warning."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import click
import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from PIL import Image

from docs.generate.figures import with_figures, without_figures, written_pages
from docs.generate.links import LINK, links_of_the_site
from docs.generate.pages import generated_pages
from docs.generate.targets import meanings, notes
from onnxdfq.cli.main import main
from onnxdfq.cli.options import Command
from onnxdfq.recipe.names import method_names, target_names
from onnxdfq.targets import load_target
from passes.target.operator_rule import OperatorRule
from passes.target.target import Target
from samples.record import read_rows, write_results

from .graphs import DIGITS, REPOSITORY

WRITTEN = {str(path.relative_to(REPOSITORY / "docs")): path for path in sorted((REPOSITORY / "docs").rglob("*.md"))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in WRITTEN.items()}
PAGES = TEXTS | generated_pages()  # the first of them is the README
BLOCK = re.compile(r"^```([a-z]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = ("onnxdfq", "make")
QUICK = {"--images": "32", "--steps": "2", "--tuning": "none"}
QUICK_TRAINING = {"--train-steps": "2"}


def blocks(page: str, language: str) -> list[str]:
    return [block for found, block in BLOCK.findall(PAGES[page]) if found == language]


def commands(page: str, program: str = "onnxdfq") -> list[list[str]]:
    """The lines of a page that a shell is to run, as words."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True)) and words[0] == program]


RUN = [page for page in PAGES if commands(page)]


def test_a_block_for_the_shell_holds_only_what_is_run_here() -> None:
    assert len(RUN) > 10
    makefile = (REPOSITORY / "Makefile").read_text()
    for page in PAGES:
        lines = "".join(blocks(page, "sh")).splitlines()
        assert all(line.startswith(PROGRAMS) for line in lines), page
        for _, target in commands(page, "make"):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", RUN)
def test_every_command_is_one(page: str) -> None:
    for _, name, *arguments in commands(page):
        main.commands[name].make_context(name, arguments)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the files that the pages take for the reader's own."""
    import onnxdfq
    from passes import FoldBatchNorm

    folder = tmp_path_factory.mktemp("reader")
    for name in ("model.onnx", "first.onnx", "second.onnx", "teacher.onnx"):
        shutil.copy(DIGITS / "digits.onnx", folder / name)
    shutil.copytree(DIGITS, folder / "samples" / "digits")
    graph = onnxdfq.load(folder / "model.onnx")
    FoldBatchNorm()(graph)
    ir.save(graph, folder / "folded.onnx")
    student = ir.load(folder / "model.onnx")
    student.metadata_props.clear()  # a fresh one remembers nothing of its inputs
    ir.save(student, folder / "student.onnx")
    data = np.load(DIGITS / "digits_test.npz")
    np.savez(folder / "images.npz", images=data["images"][:64], labels=data["labels"][:64])
    (folder / "photographs").mkdir()
    (folder / "shards").mkdir()
    for number in (1, 2):
        given = {"method": onnxdfq.Noise(batch_size=16), "images": 32, "shard": f"{number}/2"}
        onnxdfq.synthesize(folder / "model.onnx", output=folder / "shards" / f"{number}.npz", **given)
    for number, image in enumerate(data["images"][:40]):
        Image.fromarray(image[..., 0]).save(folder / "photographs" / f"{number}.png")
    (zoo,), (_, recipe) = blocks("how-to/zoo.md", "toml"), blocks("how-to/steer.md", "toml")
    (folder / "zoo.toml").write_text(zoo, encoding="utf-8")
    (folder / "recipe.toml").write_text(recipe.replace("imagenet", "none"), encoding="utf-8")
    onnxdfq.compress(folder / "model.onnx", method="noise", images=32, report=folder / "run.json")
    shutil.copy(folder / "model.w8a8.onnx", folder / "model.of.another.tool.onnx")
    shutil.copy(folder / "run.json", folder / "other.json")
    return folder


def quickened(words: list[str]) -> list[str]:
    """The same command, for a model of one channel and in seconds."""
    _, name, *arguments = words
    options = {option for one in main.commands[name].params for option in one.opts}
    arguments = ["none" if word in ("imagenet", "cifar10") else word for word in arguments]
    for option, value in (QUICK | QUICK_TRAINING if name == "distill" else QUICK).items():
        if option in options and option not in arguments:
            arguments += [option, value]
    return [name, *arguments, *(option for option in ("--force", "--quiet") if option in options)]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_every_command_runs(page: str, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shutil.copytree(stand_ins, tmp_path / "reader"))
    for words in commands(page):
        done = CliRunner().invoke(main, quickened(words))
        assert done.exit_code == 0, (shlex.join(quickened(words)), done.stderr)


def test_python_on_the_pages_is_python() -> None:
    found = [block for page in PAGES for block in blocks(page, "python")]
    assert len(found) > 10
    for block in found:
        ast.parse(block)


def test_every_option_stands_on_the_page_of_commands() -> None:
    groups = {f"{name} ": one for name, one in main.commands.items() if isinstance(one, click.Group)} | {"": main}
    several = {prefix + name: one for prefix, group in groups.items() for name, one in group.commands.items()}
    for name, command in several.items():
        if isinstance(command, click.Group):
            continue
        assert isinstance(command, Command)
        section = PAGES["commands.md"].split(f"\n## {name}\n")[1].split("\n## ")[0]
        for option in (option for one in command.params for option in one.opts if option.startswith("--")):
            assert option in section, (name, option)


def test_each_method_has_its_idea_and_its_settings() -> None:
    for name in method_names():
        assert f"methods/{name}.md" in TEXTS, f"docs/methods/{name}.md: the paper's idea, in our words"
    assert "250, 500 at standard, 1000 at paper" in PAGES["methods/dgh.md"]
    assert "at least 1 and at most 100,000" in PAGES["methods/dgh.md"]


def test_each_target_has_its_numbers_with_reasons_and_sources() -> None:
    for name in target_names():
        target, page = load_target(name), PAGES[f"targets/{name}.md"]
        assert str(target.opset) in page and all(key in page for key in target.operators if key not in ("*",))
        assert page.split("## Sources")[1].count("\n- ") == len(target.sources)
    assert "1.31 refuses opset 27 and newer." in PAGES["targets/ort.md"]


def test_comments_stand_by_the_key_below_them() -> None:
    text = (
        '# One.\n# Two.\na = 1\n\n# Lost.\n\nb = 2\n[operators."*"]\n# Three.\nfuses = []\n# Four.\n[operators.Conv]\n'
    )
    assert notes(text) == {"a": "One. Two.", "operators.*.fuses": "Three.", "operators.Conv": "Four."}


def test_the_meaning_of_a_key_is_that_of_the_docstring() -> None:
    said = meanings(Target)
    assert set(said) == set(Target.__dataclass_fields__) - {"name"}
    assert said["opset"] == said["ir_version"] and said["opset"].startswith("the newest")
    assert set(meanings(OperatorRule)) >= {"containers", "fuses", "checks", "oldest_opset"}


def test_a_table_holds_the_results_files_figures() -> None:
    file = "accuracy/results.json"
    asked = (
        '<!-- figures\nfile = "{}"\n'
        'where = {{ model = "{}", method = "dgh", bits = "w8a8", scheme = "power-of-two" }}\n'
        'columns = {{ model = "model", top1 = "top1", drop = "drop_points" }}\n-->\n'
        "Of yesterday.\n<!-- end of figures -->"
    )
    rows = json.loads((REPOSITORY / "samples" / file).read_text())["rows"]
    row = next(row for row in rows if row["model"] == "resnet56_cifar10jpeg")
    single = with_figures(asked.format(file, "resnet56_cifar10jpeg"))
    assert f"| {100 * row['top1']:.2f} % | {row['drop_points']:.2f} |" in single and "runs" not in single
    assert "yesterday" not in single and with_figures(single) == single and without_figures(single) == ""
    drops = [row["drop_points"] for row in rows if row["model"] == "resnet8_cifar10"]
    assert f"| {sum(drops) / 3:.2f} | 3 |" in with_figures(asked.format(file, "resnet8_cifar10"))
    with pytest.raises(ValueError, match="holds no"):
        with_figures(asked.format(file, "resnet9"))


def test_rows_that_are_kept_tell_of_their_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(Path.cwd() / "samples/one.py")])
    write_results(tmp_path / "r.json", [{"what": 1}])
    monkeypatch.setattr(sys, "argv", [str(Path.cwd() / "samples/two.py"), "new"])
    write_results(tmp_path / "r.json", [*read_rows(tmp_path / "r.json"), {"what": 2}])
    monkeypatch.setattr("docs.generate.figures.SAMPLES", tmp_path)
    asked = (
        '<!-- figures\nfile = "r.json"\nwhere = {{ what = {} }}\ncolumns = {{ what = "what" }}\n'
        "-->\n<!-- end of figures -->"
    )
    shown = [with_figures(asked.format(what)) for what in ([1], [2], [1, 2])]
    assert ["samples.one`" in page for page in shown] == [True, False, True]
    assert ["samples.two new`" in page for page in shown] == [False, True, True]


def test_a_samples_table_is_of_the_file_that_the_sample_writes() -> None:
    made = with_figures('<!-- figures\ntable = "low_bits.distil.table"\n-->\nOf yesterday.\n<!-- end of figures -->')
    (row, *_) = json.loads((REPOSITORY / "samples/low_bits/distil.json").read_text())["rows"]
    assert f"{row['drop_points']:.2f}" in made and "*From `samples/low_bits/distil.json`" in made


def test_no_figure_is_typed() -> None:
    for page, text in TEXTS.items():
        if page.startswith(("methods/", "expect/")):
            typed = without_figures(text)
            assert not re.search(r"[0-9][.,][0-9]+ ?(%|dB|points|seconds)|^<!-- figures", typed, re.MULTILINE), page


@pytest.mark.parametrize("page", written_pages(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_table_is_that_of_its_results_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == with_figures(text), "python -m docs.generate.figures writes the tables anew"


def test_every_link_leads_to_what_is_there() -> None:
    for page in written_pages():
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), (page, link)


def test_links_lead_into_the_site() -> None:
    text = "[a](docs/how-to/zero.md#b) [c](samples/notebook.ipynb) [d](https://x.org) [e](#f)"
    assert links_of_the_site(text, "") == "[a](how-to/zero.md#b) [c](notebooks/notebook.md) [d](https://x.org) [e](#f)"
    text = "[a](four-bits.md) [b](../../onnxdfq/targets/ort.toml) [c](../../README.md#d) [e](../methods)"
    found = "[a](four-bits.md) [b](../targets/ort.md) [c](../index.md#d) [e](../methods/index.md)"
    assert links_of_the_site(text, "docs/how-to") == found == links_of_the_site(found, "docs/how-to")


class Assets(HTMLParser):
    """What a page loads of itself: everything but the links that a reader follows."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for key, value in attrs if key in ("src", "srcset", "href", "poster") and tag != "a"]


@pytest.mark.slow
def test_pages_are_built_without_a_warning_and_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is in the group docs: pip install --group docs")
    pytest.importorskip("material")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "--quiet", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    pages = {str(path.relative_to(tmp_path)): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    for page, text in pages.items():
        assets = Assets()
        assets.feed(text)
        assert assets.found and not any(re.match("https?:|//", one) for one in assets.found), page
    styles = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.css")]
    assert styles and not any(re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style) for style in styles)
    menu = pages["index.html"]
    for page in (
        *(f"methods/{name}.html" for name in method_names()),
        *(f"targets/{one}.html" for one in target_names()),
    ):
        assert page in pages and f'href="{page}"' in menu, page
