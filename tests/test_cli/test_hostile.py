"""Strangers' files at the command line: what they hold is escaped, and whatever they are, one sentence ends it."""

import io
import json
import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result

from onnxdfq.cli.main import main
from onnxdfq.progress import TerminalProgress
from onnxdfq.recipe.reading import quoted

from ..slow import all_but

DIGITS = Path(__file__).resolve().parents[2] / "samples" / "digits" / "digits.onnx"
EVIL = "\x1b[31m\x9b0m\x07\r\n\x08\x7f\u202e\u2066\u200b\u2028卷积"
SHOWN = r"\x1b[31m\x9b0m\x07\r\n\x08\x7f\u202e\u2066\u200b\u2028卷积"
QUICK = ("--method", "noise", "--images", "8", "--force", "-q")

Cli = Callable[..., Result]


@pytest.fixture
def cli() -> Cli:
    """Runs a command, which may show nothing that controls a terminal and end in no fault of ours."""

    def run(*arguments: Any) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        shown = result.stdout + result.stderr
        assert all(letter.isprintable() or letter == "\n" for letter in shown), ascii(shown)
        assert "fault of onnxdfq" not in shown and "Traceback" not in shown, shown
        return result

    return run


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network, with every text in it changed to one that controls a terminal."""
    proto = onnx.load(DIGITS)
    names = {name for node in proto.graph.node for name in (*node.input, *node.output) if name}
    renamed = {"": ""} | {name: f"{EVIL}{number}" for number, name in enumerate(sorted(names))}
    for number, node in enumerate(proto.graph.node):
        node.name, node.doc_string = f"{EVIL}node{number}", EVIL
        node.input[:], node.output[:] = ([renamed[name] for name in part] for part in (node.input, node.output))
    for tensor in proto.graph.initializer:
        tensor.name = renamed[tensor.name]
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = renamed[value.name]
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = EVIL
    del proto.graph.value_info[:], proto.metadata_props[:]
    proto.producer_name = proto.producer_version = proto.domain = proto.graph.name = EVIL
    onnx.helper.set_model_props(proto, {EVIL: EVIL, "dfq.norm": f"imagenet{EVIL}", f"dfq.{EVIL}": EVIL})
    path = tmp_path_factory.mktemp("evil") / "evil.onnx"
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize(
    "arguments",
    [("inspect",), ("inspect", "--pairs"), ("lint",), ("lint", "--require", "integer")],
    ids=" ".join,
)
def test_names_of_a_file_are_escaped(arguments: tuple[str, ...], evil: Path, cli: Cli) -> None:
    result = cli(arguments[0], evil, *arguments[1:])
    assert SHOWN in result.stdout and result.exit_code == ("--require" in arguments)


@pytest.mark.parametrize("command", ["inspect", "lint"])
def test_json_holds_the_names_themselves(command: str, evil: Path, cli: Cli) -> None:
    stdout = cli(command, evil, "--json").stdout
    assert stdout.count("\n") == 1 and stdout.isascii()
    found = json.loads(stdout)
    assert found["producer"] == EVIL if command == "inspect" else EVIL in found["findings"][0]["node"]


def test_a_compression_shows_and_writes_nothing_raw(evil: Path, cli: Cli, tmp_path: Path) -> None:
    output, plan = tmp_path / f"o{EVIL}.onnx", tmp_path / "plan.toml"
    run = ("compress", evil, *QUICK, "--normalize", "none")
    result = cli(*run, "-o", output, "--save-plan", plan, "-v")
    assert result.exit_code == 0 and "written: " in result.stdout and "\\u202e" in result.stdout
    text = plan.read_text(encoding="utf-8")
    assert text.replace("\n", "").isprintable() and all(EVIL in name for name in tomllib.loads(text)["layers"])
    assert cli(*run, "-o", output, "--plan", plan).exit_code == 0
    assert SHOWN in cli("inspect", output).stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--input-shape", "1,1,1"), f"--input-shape for '{SHOWN}"),
        (("--input-shape", "a=1,1,1"), f"the model lacks; it has '{SHOWN}"),
        (("--input", "a=1"), f"has no such input; it has '{SHOWN}"),
        (("--normalize", f"a{EVIL}"), "is not one of imagenet"),
        ((), f"--normalize 'imagenet{SHOWN}' is not one of"),  # of the file's own metadata
        (("--plan", "plan.toml"), f"Unknown layer: '{SHOWN}'"),
        (("--target", f"a{EVIL}.toml"), f"The target a{SHOWN}.toml: there is no such file"),
        (("--method", EVIL), f"Unknown method: '{SHOWN}'"),
        ((f"--{EVIL}",), "No such option"),
    ],
    ids=range(9),
)
def test_errors_quote_escaped(
    options: tuple[str, ...], said: str, evil: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text(f'[layers]\n{quoted(EVIL)} = "w8"\n', encoding="utf-8")
    normalize = ("--normalize", "none") if options and "--normalize" not in options else ()
    result = cli("compress", evil, *QUICK, *normalize, "-o", tmp_path / "o.onnx", *options)
    assert result.exit_code == 2 and said in result.stderr
    assert result.stderr.count("\n") == 1 or result.stderr.startswith("Usage: ")
    assert not (tmp_path / "o.onnx").exists()


def test_the_shared_cases_of_escapes(shared_cases: Path, cli: Cli, tmp_path: Path) -> None:
    files = sorted((shared_cases / "hostile").glob("11_*.onnx"))
    assert files
    for file in files:
        for command in (("inspect",), ("inspect", "--json"), ("lint",)):
            assert cli(command[0], file, *command[1:]).exit_code == 0
        done = cli("compress", file, *QUICK, "--normalize", "none", "-v", "-o", tmp_path / "o.onnx")
        assert done.exit_code == 0 or "has unknown sizes" in done.stderr


def test_long_names_are_cut(cli: Cli, tmp_path: Path) -> None:
    proto = onnx.load(DIGITS)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{'x' * 100_000}{number}"
    onnx.save(proto, tmp_path / "a.onnx")
    result = cli("lint", tmp_path / "a.onnx", "--require", "integer")
    assert len(max(result.output.splitlines(), key=len)) < 1200 and "xxx…xxx" in result.stderr


def test_progress_is_escaped() -> None:
    stream = io.StringIO()
    progress = TerminalProgress(f"tuning {EVIL}", stream)
    progress.started = progress.last = -1e9
    progress(1, 2, f"layer {EVIL}")
    assert stream.getvalue().rstrip("\n").isprintable() and stream.getvalue().count(SHOWN) == 2


def test_a_terminal_without_our_letters(evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner(charset="ascii").invoke(main, ["lint", str(evil)])
    assert result.exit_code == 0 and "\\u5377\\u79ef" in result.stdout and "\\u2192" in result.stdout


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Paths that no reader may open."""
    folder = tmp_path_factory.mktemp("odd")
    os.mkfifo(folder / "pipe.toml")
    (folder / "loop.toml").symlink_to("loop.toml")
    (folder / "device.toml").symlink_to("/dev/zero")
    (folder / "folder.toml").mkdir()
    yield {
        "is a pipe": folder / "pipe.toml",
        "links lead in a circle": folder / "loop.toml",
        "is a device": folder / "device.toml",
        "is a folder": folder / "folder.toml",
        "no such file": folder / "absent.toml",
        "the name is too long": folder / ("x" * 300 + ".toml"),
        "no path holds a NUL": folder / "a\0b.toml",
    }


OPTIONS = ("--recipe", "--plan", "--target", "--calibration", "--evaluate", "--op-library")
ODD = (
    "is a pipe",
    "links lead in a circle",
    "is a device",
    "is a folder",
    "no such file",
    "the name is too long",
    "no path holds a NUL",
)


@pytest.mark.parametrize("said", all_but(ODD, ODD[:3]))
def test_what_is_no_ordinary_file_is_not_opened(said: str, odd: dict[str, Path], cli: Cli, tmp_path: Path) -> None:
    path = odd[said]
    commands: list[tuple[Any, ...]] = [
        ("inspect", path),
        ("lint", path),
        ("compress", path),
        ("evaluate", DIGITS, path),
    ]
    commands += [("compress", DIGITS, *QUICK, "-o", tmp_path / "o.onnx", option, path) for option in OPTIONS]
    commands += [("targets", path), ("synthesize", path, "-o", tmp_path / "o.npz"), ("evaluate", path, path)]
    for command in commands:
        result = cli(*command)
        holds_nothing = said == "is a folder" and ("--calibration" in command or command[-2:] == (DIGITS, path))
        wanted = "holds no images" if holds_nothing or (said == "is a folder" and "--evaluate" in command) else said
        assert result.exit_code == 2 and wanted in result.stderr, (command, result.stderr)
        assert result.stdout == "" and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a\0b.onnx", "no path holds a NUL character"),
        ("x" * 300, "the name is too long"),
        ("file/x.onnx", "file is no folder; choose another"),
        ("absent/x.onnx", "absent does not exist; create it first"),
        ("folder", "is a folder; give the name of a file"),
        ("pipe", "is not an ordinary file"),
        ("loop/x", "is no folder|links lead in a circle|does not exist"),
        ("\udcff.onnx", "its name is not UTF-8"),
        ("/", "is a folder"),
        ("/proc/x.onnx", "cannot be written"),
    ],
)
@pytest.mark.parametrize("option", ["-o", "--save-plan", "--save-images"])
def test_outputs_that_cannot_be(name: str, said: str, option: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    output = [] if option == "-o" else ["-o", tmp_path / "o.onnx"]
    for targets in (("--target", "ort"), ("--target", "ort", "--target", "compact")):
        if len(targets) > 2 and name in ("folder", "pipe") and option != "--save-images":
            continue  # the target becomes a part of the name, which is free then
        result = cli("compress", DIGITS, *QUICK, "--normalize", "none", *targets, *output, option, tmp_path / name)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert any(part in result.stderr for part in said.split("|")), result.stderr
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        (option, value)
        for option in ("--images", "--steps", "--batch-size", "--seed", "--minutes", "--split-channels", "--budget")
        for value in ("-1", "1000000000000", "18446744073709551616", "9" * 5000, "nan", "inf", "", "1e400", "0x10")
        if (option, value) not in {("--budget", "")}
    ]
    + [("--input-shape", value) for value in ("1,1,8,999999999999", "9" * 5000, ",".join("1" * 99), "1,1,-8,8", "")]
    + [("--input", f"image={value}") for value in ("1e300", "normal:0:1e300", "uniform:-1e308:1e308", "9" * 5000)]
    + [("--set", f"noise.batch_size={value}") for value in ("0", "9" * 5000, "0x" + "f" * 5000, "nan", "[" * 2000)],
    ids=lambda value: value[:24],
)
def test_numbers_beyond_their_bounds_are_refused_at_once(option: str, value: str, cli: Cli, tmp_path: Path) -> None:
    result = cli("compress", DIGITS, "--method", "dead-leaves", "-o", tmp_path / "o.onnx", f"{option}={value}")
    assert result.exit_code == 2 and option in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1 or result.stderr.startswith("Usage: ")
    assert len(result.stderr) < 1500


@pytest.mark.parametrize("options", [("--images", "65536"), ("--images", "8", "--batch-size", "65536")])
@pytest.mark.parametrize("method", ["noise", "dead-leaves", "dfmpc"])
def test_images_that_memory_may_not_hold(options: tuple[str, ...], method: str, cli: Cli, tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 224, 224])
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 3, 224, 224])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [output])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "a.onnx",
    )
    bits = ("--bits", "w2/6a8") if method == "dfmpc" else ()
    result = cli("compress", tmp_path / "a.onnx", "--method", method, *bits, *options)
    assert result.exit_code == 2
    assert "come to 39,460,012,032 bytes, and 4,294,967,296 are allowed; give at most 7,133." in result.stderr
