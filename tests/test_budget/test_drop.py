"""`--budget drop=…` from the outside."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxdfq
from onnxdfq.errors import InputError
from onnxdfq.pipeline.result import Result
from onnxdfq.recipe.plan_file import read_plan

from ..graphs import DIGITS

MODEL = DIGITS / "digits.onnx"
SETTINGS: dict[str, Any] = {"method": "noise", "images": 32, "tuning": "none"}


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxdfq.pipeline.held_back.CHOOSING", 64)


def compress(output: Path, **settings: Any) -> Result:
    return onnxdfq.compress(MODEL, output=output, **(SETTINGS | settings))


@pytest.mark.slow
def test_layers_get_what_they_need(tmp_path: Path) -> None:
    plain = compress(tmp_path / "p.onnx", bits="w3a3")
    result = compress(tmp_path / "q.onnx", bits="w3a3", budget="drop=3.5", save_plan=tmp_path / "plan.toml")
    assert result.metrics["drop"] <= 3.5
    assert result.metrics["agreement_held_back"] > plain.metrics["agreement_held_back"]  # type: ignore[operator]
    plan = read_plan(tmp_path / "plan.toml")
    assert 16 in {bits.activation for bits in plan.layers.values()} or plan.keep_float
    assert len([name for name in plan.keep_float if "Conv" in name or "Gemm" in name]) == result.metrics["layers_float"]
    (note,) = (note for note in result.notes if note.startswith("--budget drop"))
    assert "on 64 inputs that decide nothing else, each worth 1.56" in note


@pytest.mark.slow
def test_where_no_bits_are_wide_enough_layers_stay_float(tmp_path: Path) -> None:
    settings = {"bits": "w2a2", "target": "openvino"}
    result = compress(tmp_path / "q.onnx", budget="drop=12", save_plan=tmp_path / "p.toml", **settings)
    assert (
        0
        < result.metrics["layers_float"]
        == len([n for n in read_plan(tmp_path / "p.toml").keep_float if "Conv" in n or "Gemm" in n])
    )
    assert result.metrics["drop"] <= 12
    again = compress(tmp_path / "r.onnx", plan=tmp_path / "p.toml", **settings)
    assert again.metrics["agreement_held_back"] == result.metrics["agreement_held_back"]


@pytest.mark.slow
def test_bits_are_given_away_where_that_makes_the_file_smaller(tmp_path: Path) -> None:
    wide = compress(tmp_path / "w.onnx", target="compact")
    result = compress(tmp_path / "q.onnx", target="compact", budget="drop=20")
    assert result.metrics["drop"] <= 20 and result.metrics["bytes"] < 0.9 * wide.metrics["bytes"]
    kept = compress(tmp_path / "o.onnx", target="ort", budget="drop=20")
    assert set(kept.targets["ort"].plan.weights) and {q.bits for q in kept.targets["ort"].plan.weights.values()} == {8}


@pytest.mark.slow
def test_what_nothing_meets_tells_the_least_and_its_cost(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"drop=0 cannot be met .*least possible is drop=[0-9.]+ within size=.*kB; "):
        compress(tmp_path / "q.onnx", bits="w8a2", budget="size=41kB,drop=0", target="openvino")
    assert not (tmp_path / "q.onnx").exists()


def test_a_network_without_classes_is_refused(tmp_path: Path, two_layers: Any) -> None:
    import onnx_ir as ir

    two_layers.graph.outputs[0] = two_layers.graph.node("Relu_r").outputs[0]
    two_layers.graph.remove([two_layers.graph.node(name) for name in ("GlobalAveragePool_p", "Flatten_f", "Gemm_y")])
    ir.save(two_layers, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"no output of .* tells classes apart"):
        onnxdfq.compress(tmp_path / "m.onnx", method="noise", images=8, budget="drop=1")


def test_of_the_users_own_some_have_to_be_held_back(tmp_path: Path) -> None:
    few = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    with pytest.raises(InputError, match="give at least 32 with --calibration"):
        onnxdfq.compress(MODEL, output=tmp_path / "q.onnx", calibration=few, budget="drop=1", normalize="0/1")
