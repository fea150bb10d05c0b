"""`--method dfmpc` end to end: low and high bits in closed form, the file that ships, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.errors import InputError, NoBatchNorm
from onnxdfq.model_file import load_model
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm

from ..slow import slow

SAMPLES = Path(__file__).resolve().parents[2] / "samples" / "digits"
DIGITS, TEST = SAMPLES / "digits.onnx", SAMPLES / "digits_test.npz"


def integers(model: ir.Model) -> list[np.ndarray]:
    """The weights as they are written."""
    arrays = [
        node.inputs[0].const_value for node in model.graph if node.op_type == "DequantizeLinear" and node.inputs[0]
    ]
    return [array.numpy() for array in arrays if array is not None and array.numpy().ndim > 1]


def test_two_and_six_bits_without_images(tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"
    result = onnxdfq.compress(DIGITS, output=output, method="dfmpc", bits="w2/6", evaluate=TEST)
    assert result.images is None
    spans = [(int(array.min()), int(array.max())) for array in integers(ir.load(output))]
    assert spans.count((-1, 1)) >= 2
    assert all(span == (-1, 1) or (span[0] >= -32 and span[1] <= 31) for span in spans)
    assert any(span[1] > 1 for span in spans)
    assert result.metrics["top1"] > result.metrics["top1_float"] - 0.1  # type: ignore[operator]


@pytest.mark.slow
def test_the_recalibrated_form_beats_the_papers(tmp_path: Path) -> None:
    common = {"method": "dfmpc", "bits": "w2/6", "evaluate": TEST}
    best = onnxdfq.compress(DIGITS, output=tmp_path / "best.onnx", **common)  # type: ignore[arg-type]
    paper = onnxdfq.compress(DIGITS, output=tmp_path / "paper.onnx", settings={"dfmpc": {"form": "paper"}}, **common)  # type: ignore[arg-type]
    assert best.metrics["sqnr_db"] > paper.metrics["sqnr_db"]  # type: ignore[operator]


@pytest.mark.slow
def test_with_calibrated_activations(tmp_path: Path) -> None:
    weights_only = onnxdfq.compress(DIGITS, output=tmp_path / "w.onnx", method="dfmpc", bits="w2/6")
    both = onnxdfq.compress(
        DIGITS, output=tmp_path / "wa.onnx", method="dfmpc", bits="w2/6a8", images=32, steps=30, evaluate=TEST
    )
    assert both.images is not None
    for ours, theirs in zip(integers(both.model), integers(weights_only.model), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert both.metrics["top1"] > both.metrics["top1_float"] - 0.1  # type: ignore[operator]


def test_default_name_holds_no_slash(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(DIGITS.read_bytes())
    assert onnxdfq.compress(source, method="dfmpc", bits="w6/6").path == tmp_path / "m.w6-6.onnx"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": "w4a8"}, "--method dfmpc does not take --bits w4a8"),
        ({"bits": "w2/6", "method": "dgh"}, "--method dgh does not take --bits w2/6"),
        ({"bits": "w8/8a8", "target": "vitisai"}, "vitisai does not take that"),
        ({"bits": "w2/8a8", "target": "qnn"}, "takes weights of 4 or 8 bits, not of 2"),
        ({"bits": "w2/6", "equalize": True}, "leave --equalize out"),
        ({"bits": "w2/6a8", "split_channels": 0.1}, "leave --split-channels out"),
        ({"bits": "w2/6a8", "budget": "size=9KB"}, "leave --budget out"),
        ({"bits": "w1/6"}, "weights take 2 to 8 bits"),
        ({"bits": "w2/6", "settings": {"dfmpc": {"form": "papre"}}}, "Did you mean 'paper'"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        onnxdfq.compress(DIGITS, output=tmp_path / "q.onnx", **{"method": "dfmpc", **settings})


def test_pins_of_weights_are_refused(tmp_path: Path) -> None:
    pins = tmp_path / "pins.toml"
    pins.write_text("[layers]\n'/stages/stages.0/conv2/Conv' = 'w4'\n")
    with pytest.raises(InputError, match="leave --plan with bits of weights out"):
        onnxdfq.compress(DIGITS, output=tmp_path / "q.onnx", method="dfmpc", bits="w2/6", plan=pins)


@pytest.mark.slow
def test_blocks_are_reconstructed_behind_the_closed_form(tmp_path: Path) -> None:
    common: dict[str, Any] = {"method": "dfmpc", "bits": "w2/6", "images": 64, "steps": 60, "evaluate": TEST}
    tuned = onnxdfq.compress(DIGITS, output=tmp_path / "t.onnx", tuning="brecq", **common)
    closed = onnxdfq.compress(DIGITS, output=tmp_path / "c.onnx", tuning="none", **common)
    assert closed.images is None
    assert tuned.metrics["sqnr_db"] > closed.metrics["sqnr_db"]  # type: ignore[operator]
    spans = [(int(array.min()), int(array.max())) for array in integers(tuned.model)]
    assert spans.count((-1, 1)) == [(int(a.min()), int(a.max())) for a in integers(closed.model)].count((-1, 1))


def test_layers_that_stay_high_are_one_sentence(tmp_path: Path) -> None:
    notes = onnxdfq.compress(DIGITS, output=tmp_path / "q.onnx", method="dfmpc", bits="w2/6").notes
    assert [note for note in notes if "stay at 6 bits; the debug log (-v) says why of each." in note] == list(notes[:1])


def test_more_bits_for_the_low_layers_are_warned_about(tmp_path: Path) -> None:
    result = onnxdfq.compress(DIGITS, output=tmp_path / "q.onnx", method="dfmpc", bits="w6/2")
    assert sum("2 bits, fewer than the 6" in note for note in result.notes) == 1


def test_folded_models_say_why() -> None:
    model = load_model(DIGITS)
    Canonicalize()(model)
    FoldBatchNorm()(model)
    with pytest.raises(NoBatchNorm, match="dfmpc reads the running statistics"):
        onnxdfq.compress(model, method="dfmpc", bits="w2/6")


@pytest.mark.slow
@pytest.mark.parametrize("bits", [slow("w2/6"), "w2/6a8"])
def test_folded_models_are_quantized_by_images_of_the_users_own(tmp_path: Path, bits: str) -> None:
    images = tmp_path / "images.npz"
    onnxdfq.synthesize(DIGITS, output=images, images=64, steps=60)
    model = load_model(DIGITS)
    Canonicalize()(model)
    FoldBatchNorm()(model)
    result = onnxdfq.compress(model, method="dfmpc", bits=bits, calibration=images, evaluate=TEST)
    assert result.metrics["top1"] > result.metrics["top1_float"] - 0.1  # type: ignore[operator]
    assert [(int(array.min()), int(array.max())) for array in integers(result.model)].count((-1, 1)) >= 2
    with pytest.raises(InputError, match="No pair is legal: of no low layer"):
        onnxdfq.compress(model, method="dfmpc", bits=bits, calibration=images, settings={"dfmpc": {"form": "paper"}})


def test_a_dead_channel_leaves_room_for_its_bias(tmp_path: Path) -> None:
    """Gamma of nearly zero: steps of the weights, and the accumulator's with them, far below what the channel adds."""
    model = load_model(DIGITS)
    Canonicalize()(model)
    norm = next(node for node in model.graph if node.op_type == "BatchNormalization")
    for index, number in ((1, 1e-10), (2, 3.0)):
        value = norm.inputs[index]
        assert value is not None and value.const_value is not None
        array = value.const_value.numpy().copy()
        array[0] = number
        value.const_value = ir.Tensor(array, name=value.name)
    result = onnxdfq.compress(model, method="dfmpc", bits="w2/6a8", images=32, steps=10)
    assert result.metrics["sqnr_db_images"] > 8  # type: ignore[operator]


def test_inspect_shows_the_pairs() -> None:
    printed = CliRunner().invoke(main, ["inspect", str(DIGITS), "--pairs", "--json"])
    found = json.loads(printed.stdout)
    assert found["low"]
    assert all(pair["paid_by"] for pair in found["low"].values() if pair["legal"])
    lines = CliRunner().invoke(main, ["inspect", str(DIGITS), "--pairs"]).stdout.splitlines()
    assert len(lines) == len(found["low"]) + len(found["high"])
