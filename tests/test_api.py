"""The Python door: what is in it, what it takes, and what it gives back."""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxdfq
from onnxdfq.errors import DataError, InputError

from .graphs import DIGITS, REPOSITORY

MODEL = DIGITS / "digits.onnx"
ARCHIVE = np.load(DIGITS / "digits_test.npz")


def test_what_is_in_it() -> None:
    wanted = {"compress", "synthesize", "evaluate", "lint", "inspect", "export", "load", "Recipe", "Dgh", "Result"}
    assert wanted <= set(dir(onnxdfq)) == set(onnxdfq.__all__)
    for name in dir(onnxdfq):
        assert getattr(onnxdfq, name).__doc__, name
    for name in ("compress", "synthesize", "evaluate", "load"):
        signature = inspect.signature(getattr(onnxdfq, name))
        assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, onnxdfq; dir(onnxdfq); print({'torch', 'onnxruntime', 'onnx', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert run.stdout.strip() == "set()"


class Pairs:
    """What torch calls a dataset: indexed, with a length, without iteration."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return ARCHIVE["images"][index], int(ARCHIVE["labels"][index])


def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, 24, 8):
        images = ARCHIVE["images"][start : start + 8]
        yield images if images.ndim == 4 else images[..., np.newaxis], ARCHIVE["labels"][start : start + 8]


def sources() -> dict[str, object]:
    images = ARCHIVE["images"][:24]
    return {"array": images, "pairs": Pairs(), "list of images": list(images), "batches": batches()}


def test_calibration_takes_what_programs_hold(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=ARCHIVE["images"][:24])
    common = {"normalize": "none", "force": True}  # of 24 images: an iterable is used up by one reading
    by_path = onnxdfq.compress(MODEL, calibration=tmp_path / "images.npz", output=tmp_path / "p.onnx", **common)  # type: ignore[arg-type]
    for name, source in sources().items():
        found = onnxdfq.compress(MODEL, calibration=source, output=tmp_path / "q.onnx", **common)  # type: ignore[arg-type]
        assert found.targets["ort"].plan.fingerprint == by_path.targets["ort"].plan.fingerprint, name


def test_evaluation_takes_labels_with_them() -> None:
    by_pairs = onnxdfq.evaluate(MODEL, Pairs(), normalize="none")
    by_batches = onnxdfq.evaluate(MODEL, batches(), normalize="none", against=MODEL)
    assert by_pairs.count == by_batches.count == 24
    assert by_pairs.top1 == by_batches.top1 == by_batches.top1_float and by_pairs.top1 is not None
    assert by_batches.agreement == 1.0
    assert onnxdfq.evaluate(onnx.load(MODEL), ARCHIVE["images"][:24], normalize="none").top1 is None


def test_labels_of_samples_that_the_output_mixes_count_nothing(tmp_path: Path) -> None:
    graph = onnx.parser.parse_graph("g (float[N,6,8] x) => (float[6,8] y) { y = ReduceSum<keepdims=0>(x, axis) }")
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "axis"))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=np.ones((4, 6, 8), np.float32), labels=np.zeros(4, np.int64))
    found = onnxdfq.evaluate(tmp_path / "m.onnx", tmp_path / "data.npz", against=tmp_path / "m.onnx")
    assert (found.count, found.top1, found.top1_float, found.agreement) == (4, None, None, 1.0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (7, "of type int; give an array"),
        ([], "is empty"),
        ([np.zeros((8, 8), np.uint8), np.zeros((9, 9), np.uint8)], "different sizes"),
        ([np.zeros((2, 8, 8, 1, 1), np.uint8)], r"an entry of shape \(2, 8, 8, 1, 1\)"),
        ([(np.zeros((8, 8), np.uint8), 1), np.zeros((8, 8), np.uint8)], "2 images and 1 labels"),
    ],
)
def test_what_is_no_data_is_refused(source: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        onnxdfq.compress(onnx.load(MODEL), calibration=source, normalize="none")


def test_none_is_the_default_and_whole_numbers_pass_for_floats(tmp_path: Path) -> None:
    given = dict.fromkeys(("bits", "target", "scheme", "effort", "seed", "tuning", "device", "settings", "plan"))
    result = onnxdfq.compress(MODEL, method="noise", images=8, split_channels=0, output=tmp_path / "q.onnx", **given)
    assert list(result.targets) == ["ort"] and result.metrics["images"] == 8
    with pytest.raises(InputError, match="it must be `int`, not `str`") as refused:
        onnxdfq.compress(MODEL, images="8")  # type: ignore[arg-type]
    assert refused.value.field == "images"


def test_labelled_batches_of_an_iterator_are_read_once(tmp_path: Path) -> None:
    result = onnxdfq.compress(
        MODEL, method="noise", images=8, normalize="none", evaluate=batches(), output=tmp_path / "q.onnx"
    )
    assert result.metrics["count"] == 24


def test_models_are_looked_at_by_path_or_name() -> None:
    assert onnxdfq.inspect(str(MODEL)) == onnxdfq.inspect(MODEL)
    assert onnxdfq.lint(str(MODEL)).count == onnxdfq.lint(MODEL).count
    assert onnxdfq.load(str(MODEL)).graph.inputs[0].name == "image"


def test_a_recipe_is_overruled_by_arguments(tmp_path: Path) -> None:
    recipe = onnxdfq.Recipe(method="dgh", images=8, steps=1, settings={"dgh": {"rate": 8}})
    result = onnxdfq.compress(MODEL, recipe=recipe, method="noise", output=tmp_path / "q.onnx")
    assert result.method == "noise" and result.metrics["images"] == 8
    assert recipe.changed({"settings": {"dgh": {"steps": 2}}}, where="here").settings == {
        "dgh": {"rate": 8, "steps": 2}
    }


def test_a_result_holds_and_saves_what_came_out(tmp_path: Path) -> None:
    result = onnxdfq.compress(onnx.load(MODEL), method="noise", images=8, target=["ort", "vitisai"])
    assert result.path is None and all(part.path is None for part in result.targets.values())
    ort = result.targets["ort"]
    assert ort.metrics["sqnr_db_images"] == result.metrics["sqnr_db_images"]
    assert {finding.verdict for finding in ort.findings} == {"integer"} and ort.plan.weights
    assert onnx.load(result.save(tmp_path / "q.onnx")).graph.output[0].name
    with pytest.raises(onnxdfq.OutputError, match="--force"):
        result.save(tmp_path / "q.onnx")
    assert result.targets["vitisai"].save(tmp_path / "q.onnx", force=True).exists()
    shown = result._repr_html_()
    assert "<th>ort</th><th>vitisai</th>" in shown and "sqnr_db_images" in shown


def test_strings_are_escaped_for_jupyter() -> None:
    result = onnxdfq.synthesize(MODEL, method="noise", images=8)
    from dataclasses import replace

    assert "<script>" not in replace(result, notes=("<script>alert(1)</script>",))._repr_html_()
