"""Reports: one file that needs nothing else, whatever the names in it; read back, compared, and refused."""

import json
import os
import re
import shutil
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.errors import DataError, InputError, OutputError
from onnxdfq.pipeline.arguments import settled_recipe
from onnxdfq.pipeline.request import Output, Request
from onnxdfq.recipe.recipe import parse_settings
from onnxdfq.report.command import compress_command
from onnxdfq.report.diagnosis.result import Bars, Diagnosis, Finding, LayerReport, TensorReport
from onnxdfq.report.model_explorer import model_explorer
from onnxdfq.report.page.page import compared_page, page
from onnxdfq.report.pictures import png
from onnxdfq.report.run import FileReport, ImagesReport, LayerDistance, RunReport, read_report, to_json
from onnxdfq.targets import load_target

from .planted import PLANTED, chain, inquired, pixels, quantized

EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror="alert(2)">',
    "'; alert(3); //",
    "</style><h1>",
    "\x1b[2J\x07",
]
VOID = {"meta", "img", "path", "line", "br"}


def layer(name: str, *, level: float | None = 30.0) -> LayerReport:
    tensors = [
        TensorReport(
            name=f"{name}.{kind}",
            layer=name,
            kind=kind,
            bits=8,
            grid=(-1.0, 1.0),
            least=-2.5,
            greatest=2.5,
            own_db=40.0,
            accumulated_db=30.0,
            outputs_db=35.0,
            bars=Bars(low=-2.5, high=2.5, counts=tuple(range(1, 49))),
        )
        for kind in ("weight", "activation")
    ]
    return LayerReport(
        name=name,
        op_type="Conv",
        weight_bits=8,
        activation_bits=8,
        alone_db=level,
        all_but_db=31.0,
        kernel="integer",
        reason=f"why {name}",
        bytes=100,
        macs=1000,
        tensors=tuple(tensors),
    )


def made(names: list[str], *, pictures: int = 2, levels: list[float | None] | None = None) -> RunReport:
    """A report of layers of these names."""
    shown = [layer(name, level=level) for name, level in zip(names, levels or [30.0] * len(names), strict=True)]
    found = Finding(
        kind="bits", layer=names[0], tensor="t", cause=f"because of {names[0]}", remedies=(f"try {names[0]}",), harm=0.1
    )
    diagnosis = Diagnosis(
        file=names[0],
        against=names[0],
        by="a tool",
        target="ort",
        nodes_integer=3,
        nodes_float=1,
        samples=4,
        data="data",
        sqnr_db=22.5,
        layers=tuple(shown),
        findings=(found,),
    )
    file = FileReport(
        target="ort",
        path=names[0],
        bits="w8a8",
        bytes=1000,
        bytes_float=4000,
        verdict="fair",
        sqnr_db=22.5,
        agreement=0.5,
        metrics={names[0]: names[0]},
        provenance={names[0]: names[0]},
        diagnosis=diagnosis,
    )
    picture = b64encode(png(np.random.default_rng(0).integers(0, 255, (72, 72, 3), np.uint8)))
    images = ImagesReport(
        method=names[0],
        count=pictures,
        pictures=(picture.decode(),) * pictures,
        statistics=(),
        distances=tuple(LayerDistance(name=name, distance=0.5) for name in names),
    )
    return RunReport(
        source=names[0],
        command=f"onnxdfq compress '{names[0]}'",
        versions={"python": "3"},
        files=(file,),
        images=images,
        notes=(names[0],),
    )


class Page(HTMLParser):
    """Tags and attributes of a page, and whether all that opens is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", [page(made(EVIL)), compared_page(made(EVIL), made(["other", *EVIL[1:]]))])
def test_names_are_text_and_nothing_else(text: str) -> None:
    found = Page(text)
    assert not found.open
    names = [tag for tag, _ in found.tags]
    assert names.count("script") == names.count("style") == 1
    assert "h1" in names and names.count("h1") == 1
    assert all(attrs["src"].startswith("data:image/png;base64,") for tag, attrs in found.tags if tag == "img")
    assert not any(key.startswith("on") for _, attrs in found.tags for key in attrs)
    assert EVIL[0] in found.text and EVIL[1] in found.text
    assert "\x1b" not in text


def test_nothing_is_loaded_and_nothing_else_runs() -> None:
    text = page(made(["conv"]))
    links = [
        attrs[key] or "" for _, attrs in Page(text).tags for key in ("src", "href", "action", "data") if key in attrs
    ]
    assert links and all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert not re.search(r"https?://|@import|url\(", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None and "default-src &#39;none&#39;" in policy[1] and "unsafe" not in policy[1]
    for tag in ("script", "style"):
        inner = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert inner is not None
        assert b64encode(sha256(inner[1].encode()).digest()).decode() in policy[1].replace("&#43;", "+")


def test_two_hundred_layers_are_small_and_quick() -> None:
    report = made([f"/stages/stages.{place}/conv/Conv" for place in range(200)], pictures=16)
    started = time.monotonic()
    text = page(report)
    assert time.monotonic() - started < 5
    assert 1e5 < len(text.encode()) < 2e6
    assert text.count("<svg") == 400


def test_the_worst_layers_have_a_remedy_each() -> None:
    text = page(made(["a", "b", "c", "d"], levels=[10, 20, 30, None]))
    verdict = text[text.index('id="verdict"') : text.index('id="images"')]
    assert verdict.count("<li><strong>") == 3 and verdict.count("→") == 3
    assert "try a" in verdict and "--plan" in verdict and "d</strong>" not in verdict
    assert "75.0 %" in verdict  # of nodes on integers


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    report = made(EVIL)
    (tmp_path / "r.json").write_text(to_json(report), encoding="utf-8")
    assert read_report(tmp_path / "r.json") == report
    broken = replace(report.files[0], sqnr_db=float("nan"))
    assert json.loads(to_json(replace(report, files=(broken,))))["files"][0]["sqnr_db"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<html>", "is no report of onnxdfq"),
        ("{}", "is no report of onnxdfq"),
        ("[" * 100_000, "is no report of onnxdfq"),
        ('{"format": "onnxdfq report", "version": 99}', "is a report of version 99"),
        ('{"format": "onnxdfq report", "version": 1, "source": 3}', "is a damaged report"),
        ('{"format": "onnxdfq report", "version": 1}', "is a damaged report"),
    ],
)
def test_a_file_that_is_not_ours(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.json").write_text(text)
    result = CliRunner().invoke(main, ["report", str(tmp_path / "r.json"), "-o", str(tmp_path / "r.html")])
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "r.html").exists()
    with pytest.raises(DataError, match=message):
        read_report(tmp_path / "r.json")


def test_reports_on_the_command_line(tmp_path: Path) -> None:
    for name, levels in (("a", [10.0, 20.0]), ("b", [15.0, None])):
        (tmp_path / f"{name}.json").write_text(to_json(made(["one", "two"], levels=list(levels))))
    call = CliRunner().invoke
    given = ["report", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    result = call(main, [*given, "-o", str(tmp_path / "both.html")])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "both.html").read_text()
    assert 'data-value="5.0"' in text and "B − A" in text
    assert call(main, [*given, "-o", str(tmp_path / "both.html")]).exit_code == 2  # it exists
    assert call(main, [*given, "-o", str(tmp_path / "both.html"), "--force"]).exit_code == 0
    result = call(main, [*given, str(tmp_path / "a.json"), "-o", str(tmp_path / "three.html")])
    assert result.exit_code == 2 and "3 are given" in result.stderr
    result = call(main, ["report", str(tmp_path / "c.json"), "-o", str(tmp_path / "c.html")])
    assert result.exit_code == 2 and "c.json cannot be read" in result.stderr


def test_a_diagnosis_is_reported(tmp_path: Path) -> None:
    model, written = PLANTED["a threshold that saturates"].models()
    ir.save(model, tmp_path / "m.onnx")
    ir.save(written, tmp_path / "q.onnx")
    given = {"against": tmp_path / "m.onnx", "data": {"x": pixels(model, 16)}}
    found = onnxdfq.diagnose(tmp_path / "q.onnx", report=tmp_path / "r.html", **given)
    report = read_report(tmp_path / "r.json")
    (file,) = report.files
    assert file.diagnosis == replace(found, notes=()) and report.notes == found.notes
    assert (file.bits, file.verdict, file.bytes) == ("w8a8", "fair", (tmp_path / "q.onnx").stat().st_size)
    assert file.agreement is not None and 0 <= file.agreement <= 1
    assert report.images is not None and len(report.images.pictures) == 16
    assert report.command.endswith(f"q.onnx --against {tmp_path / 'm.onnx'} --data FILE")
    assert (tmp_path / "r.html").read_text() == page(report) and (tmp_path / "r.me.json").exists()
    with pytest.raises(OutputError, match="exists"):
        onnxdfq.diagnose(tmp_path / "q.onnx", report=tmp_path / "r.html", **given)


@pytest.mark.slow
def test_a_compression_is_reported(tmp_path: Path) -> None:
    model = chain()
    next(node for node in model.graph if node.name == "Conv_h2").name = EVIL[0]
    ir.save(model, tmp_path / "m.onnx")
    given = {"method": "noise", "images": 8, "output": tmp_path / "q.onnx", "evaluate": {"x": pixels(model, 8)}}
    onnxdfq.compress(tmp_path / "m.onnx", report=tmp_path / "r.html", **given)
    report = read_report(tmp_path / "r.json")
    (file,) = report.files
    assert file.diagnosis is not None and file.verdict == "good" and file.agreement is not None
    assert file.sqnr_db == pytest.approx(file.diagnosis.sqnr_db, abs=0.1)
    assert {found.name for found in file.diagnosis.layers} >= {"Conv_h1", EVIL[0], "Gemm_y"}
    assert report.images is not None and [row.of for row in report.images.statistics] == ["noise", "your own"]
    assert report.command.startswith(f"onnxdfq compress {tmp_path / 'm.onnx'} --method noise --images 8")
    text = (tmp_path / "r.html").read_text()
    assert EVIL[0] in Page(text).text and text == page(report)
    assert json.loads((tmp_path / "r.me.json").read_text())["graphs"][0]["nodes"]
    with pytest.raises(OutputError, match="exists"):
        onnxdfq.compress(tmp_path / "m.onnx", report=tmp_path / "r.html", **(given | {"output": tmp_path / "p.onnx"}))
    assert not (tmp_path / "p.onnx").exists()
    with pytest.raises(InputError, match="is neither"):
        onnxdfq.compress(tmp_path / "m.onnx", report=tmp_path / "r.pdf", **given)


def test_the_graph_for_model_explorer_is_whole() -> None:
    model = chain()
    written = quantized(model)
    for edit in PLANTED["a threshold that saturates"].edits:
        edit(written)
    found = model_explorer(written, inquired(written, model, pixels(model)))
    (graph,) = found["graphs"]
    ids = [node["id"] for node in graph["nodes"]]
    assert len(ids) == len(set(ids)) == len(written.graph) + 1
    sources = {edge["sourceNodeId"] for node in graph["nodes"] for edge in node.get("incomingEdges", [])}
    assert sources <= set(ids) and "input 0" in sources
    colours = {node["attrs"][0]["value"]: node.get("style", {}).get("backgroundColor", "") for node in graph["nodes"]}
    assert colours["Conv_h2"] and not colours["Conv_h1"]


def test_the_command_says_what_was_asked_for(tmp_path: Path) -> None:
    settings = parse_settings(["dgh.rate=8"])
    recipe, method = settled_recipe(
        None, "dgh", where="here", bits="w4a8", equalize=True, settings=settings, target=("ort", "qnn"), seed=3
    )
    request = Request(
        source=tmp_path / "a model.onnx",
        recipe=recipe,
        method=method,
        outputs=[Output(target=load_target(name), path=tmp_path / f"{name}.onnx") for name in ("ort", "qnn")],
        calibration=[np.zeros(1)],
        input_shape={"x": (1, 3, 8, 8)},
        inputs={"flag": "1"},
        dynamic_batch=True,
    )
    words = compress_command(request)
    assert words.startswith(f"onnxdfq compress '{tmp_path}/a model.onnx'")
    for part in (
        "--method dgh",
        "--bits w4a8",
        "--equalize",
        "--target ort --target qnn",
        "--seed 3",
        "--set dgh.rate=8",
        "--calibration FILE",
        "--input-shape x=1,3,8,8",
        "--input flag=1",
        "--dynamic-batch",
    ):
        assert part in words
    assert "--effort" not in words and " -o " not in words


def test_png_files_are_what_others_read() -> None:
    image = pytest.importorskip("PIL.Image")
    for shape in ((5, 7, 3), (5, 7, 1)):
        picture = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
        assert np.array_equal(np.asarray(image.open(BytesIO(png(picture)))).reshape(shape), picture)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """A real Chromium, where playwright and one are there: `ONNXDFQ_CHROMIUM`, or one on the path."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = os.environ.get("ONNXDFQ_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium is here (ONNXDFQ_CHROMIUM)")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.mark.slow
def test_in_a_browser(browser: object, tmp_path: Path) -> None:
    names = [*EVIL, *(f"/stages/stages.{place}/conv/Conv" for place in range(195))]
    levels: list[float | None] = [None, *np.random.default_rng(0).permutation(199).astype(float)]
    (tmp_path / "r.html").write_text(page(made(names, pictures=16, levels=levels)), encoding="utf-8")
    for width, scheme, colour in ((1200, "light", "rgb(255, 255, 255)"), (375, "dark", "rgb(20, 23, 27)")):
        shown = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[attr-defined]
        said: list[str] = []
        shown.on("console", lambda message, said=said: said.append(message.text))
        shown.on("pageerror", lambda error, said=said: said.append(str(error)))
        shown.on("dialog", lambda dialog, said=said: (said.append(dialog.message), dialog.dismiss()))
        shown.on(
            "request", lambda request, said=said: request.url[:5] in ("file:", "data:") or said.append(request.url)
        )
        started = time.monotonic()
        shown.goto((tmp_path / "r.html").as_uri())
        assert time.monotonic() - started < 10  # of an idle machine, less than 2
        assert shown.evaluate("document.documentElement.scrollWidth") <= width  # nothing is wider than the screen
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == colour
        column = "[...document.querySelectorAll('#layers tbody')].map((body) => body.rows[0].cells[4].textContent)"
        button = shown.locator("#layers th button", has_text="Alone").first
        for click in (sorted, lambda found: sorted(found, reverse=True)):
            button.click()
            cells = shown.evaluate(column)
            numbers = [float(cell) for cell in cells if cell != "–"]
            assert numbers == click(numbers) and cells[-1] == "–" and len(cells) == 200
        name = shown.locator("#layers button[aria-controls]").first
        row = shown.locator(f"#{name.get_attribute('aria-controls')}")
        assert not row.is_visible()
        name.click()
        assert row.is_visible() and row.locator("svg").first.is_visible()
        name.click()
        assert not row.is_visible()
        shown.locator("#theme").click()
        assert shown.evaluate("getComputedStyle(document.body).backgroundColor") != colour
        assert said == []
        shown.close()
