"""`--method dfq` and the edits of the float graph that any method may ask for."""

from pathlib import Path
from typing import Any

import pytest

import onnxdfq
from onnxdfq.errors import InputError, NoBatchNorm
from onnxdfq.model_file import load_model
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm

from ...slow import slow

SAMPLES = Path(__file__).resolve().parents[3] / "samples" / "digits"
DIGITS, TEST = SAMPLES / "digits.onnx", SAMPLES / "digits_test.npz"


def test_dfq_needs_no_images(tmp_path: Path) -> None:
    result = onnxdfq.compress(DIGITS, output=tmp_path / "q.onnx", method="dfq", evaluate=TEST)
    assert result.images is None
    assert result.metrics["layers_equalized"]
    assert result.metrics["top1"] > result.metrics["top1_float"] - 0.02  # type: ignore[operator]
    assert "agreement_images" not in result.metrics
    assert result.model.metadata_props["dfq.method"] == "dfq"
    assert result.model.metadata_props["dfq.images"] == "0"


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"budget": "size=1MB"}, "--budget"),
        ({"tuning": "brecq"}, "--tuning brecq"),
        ({"save_images": "x.npz"}, "--save"),
    ],
)
def test_what_needs_images_is_refused_at_once(tmp_path: Path, settings: dict[str, str], option: str) -> None:
    with pytest.raises(InputError, match=rf"makes no images, and {option}"):
        onnxdfq.compress(DIGITS, output=tmp_path / "q.onnx", method="dfq", **settings)  # type: ignore[arg-type]


def test_there_is_nothing_to_synthesize() -> None:
    with pytest.raises(InputError, match="makes no images, and synthesize needs some"):
        onnxdfq.synthesize(DIGITS, method="dfq")


def test_dfq_without_batch_norm_says_why() -> None:
    model = load_model(DIGITS)
    Canonicalize()(model)
    FoldBatchNorm()(model)
    with pytest.raises(NoBatchNorm, match="dfq reads the running statistics"):
        onnxdfq.compress(model, method="dfq")


def test_low_bits_of_dfq_are_not_tuned(tmp_path: Path) -> None:
    result = onnxdfq.compress(DIGITS, output=tmp_path / "q.onnx", method="dfq", bits="w4a8")
    assert "blocks_tuned" not in result.metrics


@pytest.mark.parametrize("settings", [{"equalize": True}, slow({"split_channels": 0.1}), slow({"clipping": "max"})])
def test_edits_before_the_numbers(tmp_path: Path, settings: dict[str, object]) -> None:
    common = {"method": "noise", "images": 16, "bits": "w6a8", "tuning": "none"}
    plain = onnxdfq.compress(DIGITS, output=tmp_path / "plain.onnx", **common)  # type: ignore[arg-type]
    edited = onnxdfq.compress(DIGITS, output=tmp_path / "edited.onnx", **common, **settings)  # type: ignore[arg-type]
    weights = [
        {v.name: v.const_value.numpy() for v in r.model.graph.initializers.values() if v.const_value is not None}
        for r in (plain, edited)
    ]
    assert any(
        name not in weights[1] or weights[1][name].shape != array.shape or (weights[1][name] != array).any()
        for name, array in weights[0].items()
    )
    assert edited.metrics["sqnr_db_images"] > plain.metrics["sqnr_db_images"] - 6  # type: ignore[operator]


@pytest.mark.parametrize(
    ("groups", "settings", "equalized"),
    [
        (8, {"bits": "w4a8"}, True),
        (8, {"bits": "w4a8", "equalize": False}, False),
        (8, {"bits": "w4a8", "scheme": "free"}, False),
        (8, {"bits": "w8a8"}, False),
        (1, {"bits": "w4a8"}, False),
    ],
)
def test_depthwise_convolutions_are_evened_out_below_8_bits(
    nets: Any, groups: int, settings: dict[str, Any], equalized: bool
) -> None:
    net = nets.Network()
    x = net.node("Relu", net.batch_norm(net.conv("image", 3, 8), 8))
    x = net.node("Relu", net.batch_norm(net.conv(x, 8 // groups, 8, group=groups), 8))
    x = net.gemm(net.node("Flatten", net.node("GlobalAveragePool", net.conv(x, 8, 8))), 8, 5)
    model = net.model({"image": ["n", 3, 8, 8]}, {x: ["n", 5]})
    result = onnxdfq.compress(model, method="noise", images=16, tuning="none", **settings)
    assert (result.metrics.get("layers_equalized", 0) > 0) == equalized
    assert any("--no-equalize" in note for note in result.notes) == equalized


def test_a_share_of_channels_is_a_share(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"split_channels is 2\.0"):
        onnxdfq.compress(DIGITS, output=tmp_path / "q.onnx", split_channels=2.0)
