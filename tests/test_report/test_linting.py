"""`onnxdfq lint` as a user meets it."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper, parser

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.errors import InputError
from onnxdfq.report.linting import lint, shortfalls
from onnxdfq.targets import target_names
from passes.graph.operators import LINEAR
from passes.lint.lint import Finding


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conv, Relu, a Tanh that no target but OpenVINO has on integers, GlobalAveragePool, Gemm."""
    random = np.random.default_rng(0)
    weights = {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 4), "c": (4,)}
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["h"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Tanh", ["r"], ["t"], "tanh"),
        helper.make_node("GlobalAveragePool", ["t"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "v", "c"], ["logits"], "gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(random.normal(size=shape).astype("f4"), name) for name, shape in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("lint") / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def quantized(network: Path) -> Path:
    path = network.parent / "q.onnx"
    onnxdfq.compress(network, output=path, method="noise", images=4)
    return path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["lint", *map(str, arguments)])


def test_a_line_for_every_node(quantized: Path) -> None:
    result = call(quantized)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[:3] for line in lines if line[:1] in "ifr" and line[8:9] == " "] == [
        ["integer", "Conv", "conv"],
        ["integer", "Relu", "relu"],
        ["float", "Tanh", "tanh"],
        ["integer", "GlobalAveragePool", "pool"],
        ["integer", "Gemm", "gemm"],
    ]
    assert "ONNX Runtime, CPU has no integer Tanh" in result.stdout
    assert "ONNX Runtime, CPU: 4 integer, 1 float, 0 refused." in result.stdout
    assert "compared with the runtime itself" in result.stdout


def test_json_is_one_object(quantized: Path) -> None:
    found = json.loads(call(quantized, "--json").stdout)
    assert found["file"] == str(quantized)
    assert (found["target"], found["verified"]) == ("ort", True)
    assert (found["integer"], found["float"], found["refused"]) == (4, 1, 0)
    assert found["findings"][2] == {
        "node": "tanh",
        "op_type": "Tanh",
        "verdict": "float",
        "reason": "ONNX Runtime, CPU has no integer Tanh",
        "advice": "",
        "exact": True,
    }


def test_a_target_is_also_a_file_of_the_users_own(network: Path, quantized: Path, tmp_path: Path) -> None:
    text = files("onnxdfq.targets").joinpath("ort.toml").read_text(encoding="utf-8")
    mine = tmp_path / "mine.toml"
    mine.write_text(text.replace('title = "ONNX Runtime, CPU"', 'title = "my runtime"'), encoding="utf-8")
    assert "my runtime: 4 integer, 1 float, 0 refused." in call(quantized, "--target", mine).stdout
    assert f"onnxdfq compress {network} --target {mine}" in call(network, "--target", mine).stdout
    assert onnxdfq.diagnose(quantized, against=network, target=str(mine)).target == "mine"
    assert call(quantized, "--target", tmp_path / "absent.toml").exit_code == 2


def test_a_target_that_was_not_run_says_so(quantized: Path) -> None:
    result = call(quantized, "--target", "qnn")
    assert "was not run: these rules come from documents" in result.stdout
    assert "onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html" in result.stdout
    assert "the file as a whole is refused" in result.stdout
    assert not json.loads(call(quantized, "--target", "qnn", "--json").stdout)["verified"]
    assert "This target is no runtime" in call(quantized, "--target", "generic").stdout


@pytest.mark.parametrize(
    ("require", "code"), [("integer:Conv,Gemm", 0), ("integer", 1), ("integer:Tanh", 1), ("integer: Conv , Gemm", 0)]
)
def test_what_is_required_decides_the_exit_code(quantized: Path, require: str, code: int) -> None:
    result = call(quantized, "--require", require)
    assert result.exit_code == code
    assert (f"--require {require} is not met by Tanh tanh." in result.stderr) == bool(code)
    assert call(quantized, "--require", require, "--json").exit_code == code


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--require", "integre"], "Did you mean 'integer'?"),
        (["--require", "integer:"], "names no operator"),
        (["--require", "integer:Cnov"], "Did you mean 'Conv'?"),
        (["--target", "openvin"], "Did you mean 'openvino'?"),
    ],
)
def test_what_cannot_be_asked(quantized: Path, options: Sequence[str], message: str) -> None:
    result = call(quantized, *options)
    assert result.exit_code == 2
    assert message in result.stderr and result.stdout == ""


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("no model")
    result = call(tmp_path / "model.onnx")
    assert result.exit_code == 2 and "Traceback" not in result.output


def test_the_target_is_that_of_the_file(network: Path, tmp_path: Path) -> None:
    onnxdfq.compress(network, output=tmp_path / "q.onnx", method="noise", images=4, target="openvino")
    found = lint(tmp_path / "q.onnx")
    assert found.target.name == "openvino"
    assert found.count["integer"] == 5
    assert lint(network).target.name == "ort"


def test_a_float_model_is_told_what_to_do(network: Path) -> None:
    result = call(network, "--target", "openvino")
    assert f"Nothing in it is quantized: onnxdfq compress {network} --target openvino" in result.stdout
    assert "OpenVINO, CPU: 0 integer, 5 float, 0 refused." in result.stdout


def test_the_model_stays_as_it_was(quantized: Path) -> None:
    before = quantized.read_bytes()
    lint(quantized)
    assert quantized.read_bytes() == before


def test_a_refused_file_meets_nothing() -> None:
    whole = Finding(node="", op_type="", verdict="refused", reason="", advice="")
    conv = Finding(node="c", op_type="Conv", verdict="integer", reason="", advice="")
    assert shortfalls([whole, conv], "integer:Conv") == (whole,)
    assert shortfalls([conv], "integer") == ()
    with pytest.raises(InputError, match="Unknown requirement"):
        shortfalls([conv], "float")


@pytest.mark.parametrize(
    "target",
    [
        name if name == "vitisai" else pytest.param(name, marks=pytest.mark.slow)
        for name in target_names()
        if name != "images"  # which no runtime is behind
    ],
)
def test_what_is_written_for_a_target_suits_it(shared_data: Path, tmp_path: Path, target: str) -> None:
    source = shared_data / "models" / "resnet8_cifar10.onnx"
    settings: dict[str, Any] = {"method": "noise", "images": 4, "target": target}
    onnxdfq.compress(source, output=tmp_path / "q.onnx", **settings)
    found = lint(tmp_path / "q.onnx")
    assert found.target.name == target
    assert found.count["refused"] == 0 and all(finding.node for finding in found.findings)
    layers = [finding for finding in found.findings if finding.op_type in LINEAR | {"QLinearConv", "QGemm"}]
    assert len(layers) >= 9
    assert {finding.verdict for finding in layers} == {"integer"}


LOOP = """<ir_version: 10, opset_import: ["" : 21]>
net (float[N,8] x) => (float[N,8] y) {
    y = Loop (most, on, x) <body = step (int64 i, bool go, float[N,8] h) => (bool going, float[N,8] k) {
        next = Add (i, most) going = Less (next, most)
        hq = QuantizeLinear (h, s, z) hd = DequantizeLinear (hq, s, z)
        wd = DequantizeLinear (w, s) m = MatMul (hd, wd)
        k = Tanh (m) }>
}"""


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    """Integers in a body, and nowhere else."""
    constants = {"most": np.int64(3), "on": np.bool_(True), "s": np.float32(0.1), "z": np.uint8(128)}
    model = parser.parse_model(LOOP)
    arrays = constants | {"w": np.ones((8, 8), "i1")}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, tmp_path / "loop.onnx")
    return tmp_path / "loop.onnx"


def test_what_lies_in_bodies_is_listed_and_counted(loop: Path) -> None:
    found = lint(loop)
    verdicts = {finding.node: finding.verdict for finding in found.findings}
    assert verdicts == {"Loop #1.body.MatMul #1": "integer", "Loop #1.body.Tanh #1": "float"}
    assert found.quantized and (found.count["integer"], found.count["float"]) == (1, 1)
    result = call(loop, "--require", "integer")
    assert result.exit_code == 1
    assert "--require integer is not met by Tanh Loop #1.body.Tanh #1." in result.stderr
    assert "Nothing in it is quantized" not in result.stdout


def test_inspect_counts_what_lies_in_bodies(loop: Path) -> None:
    found = onnxdfq.inspect(loop)
    assert (found.operators["Loop"], found.operators["MatMul"], found.operators["DequantizeLinear"]) == (1, 1, 2)
    assert (found.quantized["form"], found.quantized["weights"], found.quantized["activations"]) == ("QDQ", 1, 1)
    model = onnx.load(loop)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in ("w", "s", "z"):
        model.graph.node[0].attribute[0].g.initializer.append(stored[name])
        model.graph.initializer.remove(stored[name])
    onnx.save(model, loop)
    assert onnxdfq.inspect(loop).parameters == found.parameters == 64 + 4


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("ort", "compared with the runtime itself, node by node. "),
        ("openvino", "compared with the runtime itself, node by node, but not in bodies of If, Loop and Scan, "),
        ("tensorrt", "Of bodies of If, Loop and Scan nothing is known; "),
        ("generic", "This target is no runtime"),
    ],
)
def test_the_basis_says_what_is_known_of_bodies(loop: Path, quantized: Path, target: str, said: str) -> None:
    assert said in lint(loop, target=target).basis
    assert "bodies" not in lint(quantized, target=target).basis
