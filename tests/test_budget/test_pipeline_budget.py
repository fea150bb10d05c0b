"""Budgets and plans from the outside: flags, files, what is refused before any image is made."""

import json
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.errors import InputError, OutputError
from onnxdfq.recipe.plan_file import read_plan

SETTINGS = {"method": "noise", "images": 16, "tuning": "none"}


@pytest.fixture
def source(two_layers: ir.Model, tmp_path: Path) -> Path:
    ir.save(two_layers, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def weight_ranges(path: Path) -> dict[str, int]:
    """How many bits the integers of each weight take."""
    found = {}
    for tensor in onnx.load(path).graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if tensor.data_type == onnx.TensorProto.INT8 and array.ndim > 1:
            found[tensor.name] = max(int(-array.min() - 1).bit_length(), int(array.max()).bit_length()) + 1
    return found


def test_a_budget_is_kept_and_its_plan_gives_the_same_file_again(source: Path, tmp_path: Path) -> None:
    first = onnxdfq.compress(
        source, output=tmp_path / "a.onnx", budget="size=100B", save_plan=tmp_path / "plan.toml", **SETTINGS
    )
    assert first.metrics["weight_bytes"] is not None and first.metrics["weight_bytes"] <= 100
    assert first.metrics["bit_operations"] == sum(
        macs * bits.weight * bits.activation
        for macs, bits in zip((1440, 15), read_plan(tmp_path / "plan.toml").layers.values(), strict=True)
        if bits.weight is not None and bits.activation is not None
    )
    assert (tmp_path / "plan.toml").read_text().startswith("# [layers]: bits of each layer")
    assert any("the target ort keeps some of them in int8" in note for note in first.notes)
    onnxdfq.compress(source, output=tmp_path / "b.onnx", plan=tmp_path / "plan.toml", **SETTINGS)
    a, b = (onnx.load(tmp_path / name).graph.SerializeToString() for name in ("a.onnx", "b.onnx"))
    assert a == b


def test_a_pinned_layer_keeps_its_bits(source: Path, tmp_path: Path) -> None:
    (tmp_path / "pins.toml").write_text('[layers]\n"Gemm_y" = "w7"\n')
    onnxdfq.compress(
        source, output=tmp_path / "q.onnx", plan=tmp_path / "pins.toml", budget="size=90B",
        save_plan=tmp_path / "all.toml", **SETTINGS,
    )  # fmt: skip
    found = read_plan(tmp_path / "all.toml").layers
    assert found["Gemm_y"].weight == 7
    assert found["Conv_h"].weight is not None and found["Conv_h"].weight < 7
    assert sorted(weight_ranges(tmp_path / "q.onnx").values()) == sorted(bits.weight for bits in found.values())


def test_a_file_whose_containers_fit_needs_no_note(source: Path, tmp_path: Path) -> None:
    pinned = '[layers]\n"Conv_h" = "w4"\n"Gemm_y" = "w2"\n'
    (tmp_path / "pins.toml").write_text(pinned)
    result = onnxdfq.compress(
        source, output=tmp_path / "q.onnx", plan=tmp_path / "pins.toml", budget="size=1kB", target="compact", **SETTINGS
    )
    assert not any("--budget" in note for note in result.notes)


def test_every_target_gets_a_plan_of_its_own(source: Path, tmp_path: Path) -> None:
    onnxdfq.compress(
        source, output=tmp_path / "q.onnx", target="ort,compact", save_plan=tmp_path / "plan.toml", **SETTINGS
    )
    for target in ("ort", "compact"):
        assert {str(bits) for bits in read_plan(tmp_path / f"plan.{target}.toml").layers.values()} == {"w8a8"}


@pytest.mark.usefixtures("no_images")
def test_what_watches_over_images_does(source: Path) -> None:
    with pytest.raises(AssertionError, match="refused before images are made"):
        onnxdfq.compress(source, **SETTINGS)


@pytest.mark.usefixtures("no_images")
def test_what_cannot_be_is_refused_before_images_are_made(source: Path, tmp_path: Path) -> None:
    (tmp_path / "pins.toml").write_text('[layers]\n"Gem_y" = "w7"\n')
    with pytest.raises(InputError, match=r"Unknown layer: 'Gem_y'\. Did you mean 'Gemm_y'\?"):
        onnxdfq.compress(source, plan=tmp_path / "pins.toml", **SETTINGS)
    with pytest.raises(InputError, match=r"size=10B cannot be met: the least possible .* is size=58\.25B\."):
        onnxdfq.compress(source, budget="size=10B", **SETTINGS)
    with pytest.raises(InputError, match=r"is not of the form size=0\.5MB"):
        onnxdfq.compress(source, budget="10B", **SETTINGS)
    (tmp_path / "pins.toml").write_text('[layers]\n"Gemm_y" = "w7"\n')
    with pytest.raises(InputError, match="takes weights of 8 bits, not of 7"):
        onnxdfq.compress(source, plan=tmp_path / "pins.toml", target="vitisai", **SETTINGS)
    with pytest.raises(OutputError, match=r"pins\.toml exists"):
        onnxdfq.compress(source, save_plan=tmp_path / "pins.toml", **SETTINGS)


def test_the_flags(source: Path, tmp_path: Path) -> None:
    flags = ["compress", str(source), "-m", "noise", "--images", "16", "--tuning", "none", "--json"]
    result = CliRunner().invoke(
        main, [*flags, "--budget", "bops=50k", "--save-plan", str(tmp_path / "plan.toml")], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["bit_operations"] <= 50_000
    assert Path(found["output"]).name == "net.mixed.onnx"
    assert list(read_plan(tmp_path / "plan.toml").layers) == ["Conv_h", "Gemm_y"]
    again = CliRunner().invoke(main, [*flags, "--plan", str(tmp_path / "plan.toml"), "--force"])
    assert again.exit_code == 0, again.output
    refused = CliRunner().invoke(main, [*flags, "--budget", "bops=1", "--force"])
    assert refused.exit_code == 2
    assert "the least possible" in refused.stderr
