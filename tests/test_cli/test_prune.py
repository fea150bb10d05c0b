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
from onnxdfq.pipeline import pruning_budget
from passes.graph.work import work_per_sample

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


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Samples for the digits network, which nothing has to be searched for."""
    path = tmp_path / "noise.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 255, (40, 8, 8, 1), np.uint8))
    return path


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


def test_a_budget_is_met_where_it_harms_least(prune: Prune, noise: Path, tmp_path: Path) -> None:
    done = prune("--budget", "macs=0.7", "--repair", "moments", "--calibration", noise, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert 0.55 < found["macs"] / found["macs_float"] <= 0.7
    table = found["sensitivity"]
    for group in table.values():
        first, *others = group["options"]
        assert first == {"ratio": 0.0, "removed": 0, "harm": 0.0} and all(one["harm"] > 0 for one in others)
        assert group["chosen"] in [one["ratio"] for one in group["options"]]
    assert len({group["chosen"] for group in table.values()}) > 1
    assert found["layer_channels_removed"] == sum(
        one["removed"] for group in table.values() for one in group["options"] if one["ratio"] == group["chosen"]
    )
    props = {entry.key: entry.value for entry in onnx.load(tmp_path / "p.onnx").metadata_props}
    assert props["dfq.pruned"] == "macs=0.7"


@pytest.mark.slow
def test_a_budget_of_time_is_measured(noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Timed:
        """A session that takes as long as it has multiplications; the file at the end takes a little longer."""

        def __init__(self, path: Path, graph: Any) -> None:
            self.milliseconds = work_per_sample(graph.graph).macs / 1e5

    whole = work_per_sample(onnxdfq.load(MODEL).graph).macs / 1e5

    def latencies(session: Any, other: Any, samples: Any) -> tuple[float, float]:
        return whole, getattr(other, "milliseconds", 0.85 * whole)

    monkeypatch.setattr(pruning_budget, "Session", Timed)
    monkeypatch.setattr(pruning_budget, "latencies", latencies)
    path = tmp_path / "p.onnx"
    result = onnxdfq.prune(MODEL, output=path, budget="latency=0.8", repair="none", calibration=noise)
    assert result.metrics["macs"] <= 0.8 * result.metrics["macs_float"]
    assert result.metrics["latency_ms"] == pytest.approx(0.85 * result.metrics["latency_ms_float"], rel=1e-3)
    assert any("Measured once more" in note for note in result.notes)
    with pytest.raises(InputError, match="the least possible for this model is latency="):
        onnxdfq.prune(MODEL, output=path, budget="latency=1us", repair="none", force=True)


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
        ((), "Pruning takes one of --sparsity, --channels, --pattern and --budget; none of them is given"),
        (("--sparsity", 0.5, "--channels", 0.5), "--sparsity and --channels"),
        (("--sparsity", 1.5), "--sparsity: sparsity is 1.5; it must be above 0 and at most 1"),
        (("--pattern", "1:3"), "Unknown pattern: '1:3'"),
        (("--sparsity", 0.5, "--repair", "luck"), "Unknown repair: 'luck'"),
        (("--sparsity", 0.5, "--repair", "none,moments"), "none stands alone"),
        (
            ("--sparsity", 0.5, "--repair", "none", "--calibration", DIGITS / "digits_test.npz"),
            "Only least squares, distillation and budgets",
        ),
        (("--sparsity", 0.5, "--train-slices", 2), "--train-slices: Only distillation trains: name it with --repair"),
        (("--sparsity", 0.5, "--statistics", "fixed"), "--statistics: Only distillation trains: name it with --repair"),
        (
            ("--sparsity", 0.5, "--repair", "distillation", "--train-slices", 2),
            "--train-slices 2 cuts it; add --statistics fixed, or leave --train-slices out",
        ),
        (("--sparsity", 0.5, "--repair", "distillation", "--statistics", "none"), "Unknown statistics: 'none'"),
        (("--sparsity", 0.9999, "--repair", "none"), "leaves no weight in"),
        (("--channels", 0.99, "--repair", "none"), "leaves no channel of"),
        (("--channels", 0.01, "--repair", "none"), "no channel goes by channels=0.01"),
        (("--budget", "macs=20MB"), "is not of the form size=0.5MB"),
        (("--budget", "macs=0.01"), "cannot be met: the least possible for this model is macs="),
        (("--budget", "size=10MB"), "leaves nothing to prune: the model costs size="),
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
