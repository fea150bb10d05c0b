"""Nothing takes its place before it was measured and found sound."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxdfq
from onnxdfq.errors import ModelFileError, OutputError
from onnxdfq.evaluation import session
from onnxdfq.pipeline import comparing, verdict, writing

from ..graphs import DIGITS, two_layers

Edit = Callable[[ir.Model], None]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    ir.save(two_layers(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def compress(model: Path) -> Callable[..., Any]:
    """A run that writes all kinds of files, for two targets, over an older one."""
    folder = model.parent
    older = folder / "q.ort.onnx"
    older.write_text("older")

    def run(**given: Any) -> Any:
        return onnxdfq.compress(
            model,
            output=folder / "q.onnx",
            save_plan=folder / "plan.toml",
            save_images=folder / "images.npz",
            target=["ort", "generic"],
            **{"method": "noise", "images": 4, "force": True} | given,
        )

    return run


def as_before(folder: Path) -> bool:
    names = {entry.name for entry in folder.iterdir()}
    return names == {"model.onnx", "q.ort.onnx"} and (folder / "q.ort.onnx").read_text() == "older"


def written_with(monkeypatch: pytest.MonkeyPatch, target: str, edit: Edit) -> None:
    """The graph for this target comes out edited."""
    write = writing.write

    def edited(*given: Any) -> ir.Model:
        graph = write(*given)
        if given[2].name == target:
            edit(graph)
        return graph

    monkeypatch.setattr(writing, "write", edited)


def scale_of_last(graph: ir.Model, value: float) -> None:
    last = graph.graph.outputs[0].producer()
    assert last is not None and last.op_type == "DequantizeLinear"
    scale = ir.Value(name="odd", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
    scale.const_value = ir.tensor(np.array(value, np.float32), name="odd")
    graph.graph.register_initializer(scale)
    last.replace_input_with(1, scale)


def test_all_files_are_there_at_the_end(compress: Callable[..., Any], model: Path) -> None:
    result = compress()
    assert {entry.name for entry in model.parent.iterdir()} == {
        "model.onnx", "q.ort.onnx", "q.generic.onnx", "plan.ort.toml", "plan.generic.toml", "images.npz",
    }  # fmt: skip
    assert [found.path for found in result.targets.values()] == [
        model.with_name("q.ort.onnx"),
        model.with_name("q.generic.onnx"),
    ]
    assert result.metrics["bytes"] == model.with_name("q.ort.onnx").stat().st_size
    assert "onnxdfq-" not in " ".join(result.notes)


@pytest.mark.parametrize(("value", "found"), [(3e38, "computes NaN or infinity"), (np.nan, "came out as NaN")])
def test_a_file_without_numbers_is_not_written(
    compress: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch, value: float, found: str
) -> None:
    written_with(monkeypatch, "generic", lambda graph: scale_of_last(graph, value))
    with pytest.raises(OutputError, match=f"q.generic.onnx was not written, .* file for generic {found}") as caught:
        compress()
    assert caught.value.exit_code == 1
    assert as_before(model.parent)


def test_methods_without_images_are_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written_with(monkeypatch, "ort", lambda graph: scale_of_last(graph, 3e38))
    with pytest.raises(OutputError, match="the file for ort computes NaN or infinity"):
        onnxdfq.compress(DIGITS / "digits.onnx", method="dfq", output=tmp_path / "q.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_onnx_runtime_refuses_is_called_by_its_place(
    compress: Callable[..., Any], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = session.Session._open

    def refuse(self: session.Session) -> Any:
        if isinstance(self._source, Path) and self._source != model:
            raise RuntimeError(f"Load model from {self._source} failed")
        return opened(self)

    monkeypatch.setattr(session.Session, "_open", refuse)
    place = model.with_name("q.ort.onnx")
    with pytest.raises(ModelFileError, match=f"^ONNX Runtime refuses {place}: Load model from {place} failed.$"):
        compress()
    assert as_before(model.parent)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("stage", [(comparing, "evaluate_all"), (verdict, "verdict")], ids=["measured", "judged"])
def test_a_failure_while_proving(
    compress: Callable[..., Any],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: tuple[Any, str],
    error: type[BaseException],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(*stage, fail)
    with pytest.raises(error):
        compress()
    assert as_before(model.parent)


def test_infinities_of_the_float_model_are_no_fault(tmp_path: Path, build: Callable[..., ir.Model]) -> None:
    """What is infinite in both is left out of the figures, and what is infinite in one is counted."""
    ones = np.ones(3, np.float32)
    for name, added in {"float": [0, 0, -np.inf], "masked": [0, 1, -1e38], "broken": [np.inf, 0, 0]}.items():
        text = "(float[N,3] x) => (float[N,3] y) { y = Add (x, m) }"
        ir.save(build(text, m=np.array(added, np.float32)), tmp_path / name)
    data = np.stack([ones, ones])
    found = onnxdfq.evaluate(tmp_path / "masked", data, against=tmp_path / "float")
    assert found.not_finite is None and found.sqnr_db == pytest.approx(10 * np.log10(2))
    found = onnxdfq.evaluate(tmp_path / "broken", data, against=tmp_path / "float")
    assert found.not_finite == 2 and found.sqnr_db is None
