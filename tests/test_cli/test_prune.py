"""`onnxdfq prune`: what it writes, what it says, and that compress takes it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.errors import InputError

DIGITS = Path(__file__).resolve().parents[2] / "samples" / "digits"
MODEL = DIGITS / "digits.onnx"
Prune = Callable[..., Any]


@pytest.fixture
def prune(tmp_path: Path) -> Prune:
    """prune(option, ...): the result of the command on the digits network, written to tmp_path/p.onnx."""
    runner = CliRunner()

    def run(*options: object) -> Any:
        given = ["prune", str(MODEL), "-q", "-o", str(tmp_path / "p.onnx"), *map(str, options)]
        return runner.invoke(main, given)

    return run


def zeros(path: Path) -> float:
    weights = [onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer if len(one.dims) > 1]
    return float(sum((one == 0).sum() for one in weights) / sum(one.size for one in weights))


def test_channels_go_and_compress_goes_on(prune: Prune, tmp_path: Path) -> None:
    done = prune("--channels", 0.25, "--repair", "least-squares", "-m", "dead-leaves", "--images", 64, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    path = tmp_path / "p.onnx"
    assert found["output"] == str(path) and found["images"] == 64 and found["method"] == "dead-leaves"
    assert 0 < found["layer_channels_removed"] < found["layer_channels"]
    assert found["macs"] < 0.8 * found["macs_float"] and found["bytes"] < 0.8 * found["bytes_float"]
    model = onnx.load(path)
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert props["dfq.pruned"] == "channels=0.25" and props["dfq.repair"] == "least-squares"
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == 9
    original = onnx.load(MODEL)
    for kind in ("input", "output"):
        assert str(getattr(model.graph, kind)) == str(getattr(original.graph, kind))
    data = DIGITS / "digits_test.npz"
    assert onnxdfq.evaluate(path, data).top1 > 0.9
    small = onnxdfq.compress(path, output=tmp_path / "q.onnx", method="dead-leaves", images=32)
    assert small.metrics["bytes"] < 0.5 * found["bytes"]


def test_repair_helps(tmp_path: Path) -> None:
    data, found = DIGITS / "digits_test.npz", {}
    for repair in ("none", "moments", "least-squares"):
        result = onnxdfq.prune(
            MODEL, output=tmp_path / f"{repair}.onnx", sparsity=0.7, repair=repair, method="dead-leaves", images=64
            if repair == "least-squares" else None,
        )  # fmt: skip
        found[repair] = onnxdfq.evaluate(result.path, data, against=MODEL).sqnr_db
        assert zeros(result.path) == pytest.approx(0.7, abs=0.005)
    assert found["none"] + 1 < found["moments"] < found["least-squares"]


def test_a_pattern_leaves_the_first_layer(prune: Prune, tmp_path: Path) -> None:
    done = prune("--pattern", "2:4", "--repair", "none")
    assert done.exit_code == 0, done.stderr
    assert "stay as they are" in done.stderr and "no multiple of 4" in done.stderr
    weights = [onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / "p.onnx").graph.initializer]
    blocks = [w.transpose(0, 2, 3, 1).reshape(-1, 4) for w in weights if w.ndim == 4 and w.shape[1] % 4 == 0]
    assert blocks and all(((block != 0).sum(axis=1) <= 2).all() for block in blocks)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "Pruning takes one of --sparsity, --channels and --pattern; none of them is given"),
        (("--sparsity", 0.5, "--channels", 0.5), "--sparsity and --channels"),
        (("--sparsity", 1.5), "--sparsity: sparsity is 1.5; it must be above 0 and at most 1"),
        (("--pattern", "1:3"), "Unknown pattern: '1:3'"),
        (("--sparsity", 0.5, "--repair", "luck"), "Unknown repair: 'luck'"),
        (("--sparsity", 0.5, "--repair", "none,moments"), "none stands alone"),
        (("--sparsity", 0.5, "--repair", "none", "--calibration", DIGITS / "digits_test.npz"), "Only least squares"),
        (("--sparsity", 0.9999, "--repair", "none"), "leaves no weight in"),
        (("--channels", 0.99, "--repair", "none"), "leaves no channel of"),
        (("--channels", 0.01, "--repair", "none"), "no channel goes by channels=0.01"),
    ],
)
def test_refusals_are_a_sentence(prune: Prune, tmp_path: Path, options: tuple[object, ...], sentence: str) -> None:
    done = prune(*options)
    assert done.exit_code == 2
    assert sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "p.onnx").exists()


def test_the_file_that_is_there_stays(prune: Prune, tmp_path: Path) -> None:
    (tmp_path / "p.onnx").write_bytes(b"mine")
    done = prune("--channels", 0.25, "--repair", "none")
    assert done.exit_code == 2 and "--force" in done.stderr
    assert (tmp_path / "p.onnx").read_bytes() == b"mine"


def test_what_cannot_be_pruned_is_told(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights = {
        "w": random.normal(size=(16, 3, 1, 1)),
        "u": random.normal(size=(16, 16, 1, 1)),
        "v": random.normal(size=(4, 16, 1, 1)),
    }
    text = """g (float[N,3,4,4] x) => (float[N,4,4,4] y) {
        a = Conv (x, w) l = LRN <size=3> (a) b = Conv (l, u) r = Relu (b) y = Conv (r, v) }"""
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(onnx.numpy_helper.from_array(array.astype("f4"), name) for name, array in weights.items())
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10),
        tmp_path / "m.onnx",
    )
    result = onnxdfq.prune(tmp_path / "m.onnx", channels=0.5, repair="none")
    assert any("LRN" in note and "The others are pruned" in note for note in result.notes)
    assert result.path == tmp_path / "m.pruned.onnx" and result.metrics["layer_channels_removed"] == 8
    with pytest.raises(InputError, match="LRN"):
        onnxdfq.prune(tmp_path / "m.onnx", channels=0.5, multiple=16, repair="none", output=tmp_path / "n.onnx")
