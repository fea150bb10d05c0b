"""`onnxdfq distill`: what it writes, what it leaves, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.methods import Dafl

DIGITS = Path(__file__).resolve().parents[2] / "samples" / "digits"
TEACHER, DATA = DIGITS / "digits.onnx", DIGITS / "digits_test.npz"
FEW = ("-m", "dead-leaves", "--images", 48, "--train-steps", 4, "--train-batch", 16)
Distill = Callable[..., Any]


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network before any training."""
    model, random = onnx.load(TEACHER), np.random.default_rng(0)
    del model.metadata_props[:]
    norms = {
        name: slot
        for node in model.graph.node
        if node.op_type == "BatchNormalization"
        for slot, name in enumerate(node.input)
    }
    for one in model.graph.initializer:
        array = numpy_helper.to_array(one)
        if one.name in norms:
            array = np.full_like(array, norms[one.name] in (1, 4))
        elif array.ndim > 1:
            array = (random.standard_normal(array.shape) * (2 / np.prod(array.shape[1:])) ** 0.5).astype("f4")
        one.CopyFrom(numpy_helper.from_array(array, one.name))
    path = tmp_path_factory.mktemp("student") / "student.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
def distill(tmp_path: Path, student: Path) -> Distill:
    """distill(option, ..., student=path): the result of the command, written to tmp_path/d.onnx."""
    runner = CliRunner()

    def run(*options: object, student: Path = student) -> Any:
        given = ["distill", str(TEACHER), str(student), "-q", "-o", str(tmp_path / "d.onnx"), *map(str, options)]
        return runner.invoke(main, given)

    return run


def test_a_fresh_student_comes_back_trained(distill: Distill, student: Path, tmp_path: Path) -> None:
    done = distill(*FEW, "--evaluate", DATA, "--work-dir", tmp_path / "work", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["output"] == str(tmp_path / "d.onnx") and found["images"] == 48 and found["count"] == 599
    assert found["top1_float"] > 0.99 and 0 <= found["top1"] <= 1 and found["held_back"] == 32
    curve = found["loss_curve"]
    assert [row[0] for row in curve] == [0, 1, 2, 3, 4] and curve[-1][2] < curve[0][2]
    before, after = onnx.load(student), onnx.load(tmp_path / "d.onnx")
    props = {entry.key: entry.value for entry in after.metadata_props}
    assert props["dfq.steps"] == "4" and props["dfq.method"] == "dead-leaves" and "dfq.norm" in props
    assert len(props["dfq.teacher"]) == len(props["dfq.source"]) == 16
    arrays = [{one.name: numpy_helper.to_array(one) for one in m.graph.initializer} for m in (before, after)]
    assert list(arrays[0]) == list(arrays[1])
    changed = {name for name, array in arrays[0].items() if not np.array_equal(array, arrays[1][name])}
    assert changed == set(arrays[0])  # running statistics among them
    del before.graph.initializer[:], after.graph.initializer[:], after.metadata_props[:]
    assert before.graph == after.graph and before.opset_import == after.opset_import


def test_a_pruned_student_keeps_its_zeros(tmp_path: Path) -> None:
    pruned = onnxdfq.prune(TEACHER, output=tmp_path / "p.onnx", sparsity=0.7, repair="none").path
    assert pruned is not None
    result = onnxdfq.distill(
        TEACHER, pruned, output=tmp_path / "d.onnx", method="dead-leaves", images=32, train_steps=3, train_batch=16
    )
    props = {entry.key: entry.value for entry in onnx.load(result.path).metadata_props}
    assert props["dfq.pruned"] == "sparsity=0.7" and props["dfq.repair"] == "none"
    zeros = [
        {one.name: numpy_helper.to_array(one) == 0 for one in onnx.load(path).graph.initializer if len(one.dims) > 1}
        for path in (pruned, result.path)
    ]
    assert all(np.array_equal(mask, zeros[1][name]) for name, mask in zeros[0].items())
    assert sum(mask.sum() for mask in zeros[0].values()) > 0.6 * sum(mask.size for mask in zeros[0].values())


def test_a_generator_makes_the_images(student: Path, tmp_path: Path) -> None:
    method = Dafl(warm_up=2, width=8, batch_size=16)
    result = onnxdfq.distill(TEACHER, student, output=tmp_path / "d.onnx", method=method, images=16, train_steps=2)
    assert result.method == "dafl" and len(result.metrics["loss_curve"][-1]) == 5
    assert result.path is not None and result.path.exists()


def test_files_of_images_are_read_one_by_one(student: Path, tmp_path: Path) -> None:
    images, folder = np.load(DATA)["images"], tmp_path / "shards"
    folder.mkdir()
    for part in range(3):
        np.savez(folder / f"{part}.npz", images=images[32 * part : 32 * part + 32])
    result = onnxdfq.distill(
        TEACHER, student, output=tmp_path / "d.onnx", calibration=folder, train_steps=2, train_batch=16
    )
    assert result.metrics["held_back"] == 96 // 8 and result.metrics["images"] == 96 - 96 // 8


def test_a_pruned_network_is_repaired(tmp_path: Path) -> None:
    result = onnxdfq.prune(
        TEACHER,
        output=tmp_path / "p.onnx",
        sparsity=0.7,
        repair="distillation",
        train_steps=6,
        method="dead-leaves",
        images=48,
    )
    curve = result.metrics["loss_curve"]
    assert curve[-1][2] is not None and curve[0][2] is not None and curve[-1][2] < curve[0][2]
    assert result.metrics["weights"] == pytest.approx(0.3 * result.metrics["weights_float"], rel=0.01)
    props = {entry.key: entry.value for entry in onnx.load(result.path).metadata_props}
    assert props["dfq.repair"] == "distillation"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--temperature", 0), "--temperature: temperature is 0.0; it must be above 0"),
        (("--statistics", "running"), "Unknown statistics: 'running'"),
        (("--train-steps", 0), "--train-steps"),
        (("-m", "dfq"), "--method dfq makes no images, and distillation needs some"),
    ],
)
def test_wrong_settings_are_a_sentence(
    distill: Distill, tmp_path: Path, options: tuple[object, ...], sentence: str
) -> None:
    refused(distill(*options), sentence, tmp_path)


def refused(done: Any, sentence: str, tmp_path: Path) -> None:
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "d.onnx").exists()


def test_the_student_is_not_written_over(student: Path) -> None:
    done = CliRunner().invoke(main, ["distill", str(TEACHER), str(student), "-o", str(student), "--force"])
    assert done.exit_code == 2 and "is the student; give another name with -o" in done.stderr


def test_no_student(distill: Distill, tmp_path: Path) -> None:
    refused(distill(*FEW, student=tmp_path / "none.onnx"), "none.onnx", tmp_path)


def test_students_that_do_not_fit(distill: Distill, student: Path, tmp_path: Path) -> None:
    path, cases = tmp_path / "other.onnx", {}
    narrow = onnx.load(student)
    head = next(node for node in narrow.graph.node if node.op_type == "Gemm")
    for one in narrow.graph.initializer:
        if one.name in head.input:
            array = numpy_helper.to_array(one)
            one.CopyFrom(numpy_helper.from_array(array[:7].copy(), one.name))
    narrow.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    del narrow.graph.value_info[:]
    cases["is N×10 and the student's"] = narrow
    parser = onnx.parser.parse_model
    head_text = '<ir_version: 10, opset_import: ["" : 21]> g (float[N,1,8,8] image) => (float[N,10] logits) '
    cases["has no trainable weights"] = parser(
        head_text + "{ p = ReduceMean <keepdims = 0> (image) c = Constant <value = float[10] "
        "{1,2,3,4,5,6,7,8,9,10}> () s = Shape <start = 0, end = 1> (image) t = Constant <value = int64[1] {10}> () "
        "u = Concat <axis = 0> (s, t) logits = Expand (c, u) }"
    )
    for sentence, model in cases.items():
        onnx.save(model, path)
        refused(distill(*FEW, student=path), sentence, tmp_path)


def test_a_quantized_student_is_refused(distill: Distill, tmp_path: Path) -> None:
    quantized = onnxdfq.compress(TEACHER, output=tmp_path / "q.onnx", method="dead-leaves", images=16).path
    refused(distill(*FEW, student=quantized), "q.onnx is already quantized", tmp_path)


def test_another_normalization_is_refused(distill: Distill, student: Path, tmp_path: Path) -> None:
    model = onnx.load(student)
    onnx.helper.set_model_props(model, {"dfq.norm": "none"})
    onnx.save(model, tmp_path / "n.onnx")
    refused(distill(*FEW, student=tmp_path / "n.onnx"), "they have to see the same images", tmp_path)


def test_images_in_files_are_those_of_their_seeds(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    given = {"method": "noise", "images": 4}
    result = onnxdfq.synthesize(TEACHER, output=folder, files=2, seed=5, **given)  # type: ignore[arg-type]
    assert result.metrics["images"] == 8 and result.path == folder
    assert [file.name for file in sorted(folder.iterdir())] == ["00000.npz", "00001.npz"]
    alone = onnxdfq.synthesize(TEACHER, seed=6, **given).images  # type: ignore[arg-type]
    assert alone is not None
    np.testing.assert_array_equal(np.load(folder / "00001.npz")["images"], alone.pixels)
    with pytest.raises(onnxdfq.OutputError, match=r"00000\.npz exists"):
        onnxdfq.synthesize(TEACHER, output=folder, files=2, **given)  # type: ignore[arg-type]
    with pytest.raises(onnxdfq.InputError, match="files is 0; it must be at least 1"):
        onnxdfq.synthesize(TEACHER, output=tmp_path / "other", files=0, **given)  # type: ignore[arg-type]
    assert not (tmp_path / "other").exists()
