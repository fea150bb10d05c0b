"""How many images and steps an effort comes to: by a count of work, the same on every machine."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxdfq
from onnxdfq.errors import InputError
from onnxdfq.methods.dgh.dgh import Dgh
from onnxdfq.methods.effort import COST_OF_NUMBER, LIMITS, affordable, limit_of
from onnxdfq.methods.method import FloatModel
from onnxdfq.recipe.recipe import Recipe
from passes.graph.work import Work

from ..graphs import plain_network

ONE = Work(macs=1, numbers=0)  # a visit costs 1, so a limit counts visits


@pytest.mark.parametrize(
    ("visits", "images", "steps", "wanted"),
    [
        (256 * 500, 256, 500, (256, 500)),  # all of it
        (256 * 500 - 1, 256, 500, (256, 499)),
        (256 * 200, 256, 500, (256, 200)),
        (256 * 100, 256, 500, (256, 100)),  # steps went as far as they go first
        (25_000, 256, 500, (248, 100)),  # 250 images, down to whole eights
        (64 * 100, 256, 500, (64, 100)),
        (64 * 80, 256, 500, (64, 80)),
        (64 * 60, 256, 500, (64, 60)),
        (64 * 30, 256, 500, (64, 30)),
        (64 * 20, 256, 500, (64, 20)),
        (32 * 20, 256, 500, (32, 20)),
        (16 * 20, 256, 500, (16, 20)),
        (1, 256, 500, (16, 20)),  # done whatever they cost
        (1, 10, 500, (10, 20)),  # no more than are wanted
        (1, 256, 12, (16, 12)),
        (1, 8, 5, (8, 5)),
        (float("inf"), 1024, 5000, (1024, 5000)),
    ],
)
def test_steps_go_first_then_images_then_both(visits: float, images: int, steps: int, wanted: tuple[int, int]) -> None:
    assert affordable(ONE, visits, images=images, steps=steps) == wanted


@pytest.mark.parametrize(
    ("visits", "fixed", "wanted"),
    [
        (64 * 300, {"fixed_images": True}, (256, 75)),
        (1, {"fixed_images": True}, (256, 20)),
        (64 * 500, {"fixed_steps": True}, (64, 500)),
        (20_000, {"fixed_steps": True}, (40, 500)),
        (1, {"fixed_steps": True}, (16, 500)),
        (1, {"fixed_images": True, "fixed_steps": True}, (256, 500)),
    ],
)
def test_what_is_named_stays(visits: float, fixed: dict[str, bool], wanted: tuple[int, int]) -> None:
    assert affordable(ONE, visits, images=256, steps=500, **fixed) == wanted


def test_a_visit_costs_multiplications_and_numbers() -> None:
    work = Work(macs=1000, numbers=10)
    limit = (1000 + COST_OF_NUMBER * 10) * 256 * 300
    assert affordable(work, limit, images=256, steps=500) == (256, 300)
    assert affordable(Work(macs=0, numbers=0), 256 * 300, images=256, steps=500) == (256, 300)


@pytest.mark.parametrize("fixed", [{}, {"fixed_images": True}, {"fixed_steps": True}])
@pytest.mark.parametrize(("images", "steps"), [(256, 500), (512, 90), (40, 30), (10, 7)])
def test_more_money_never_buys_less(images: int, steps: int, fixed: dict[str, bool]) -> None:
    limits = np.geomspace(10, 1e6, 2000)
    found = [affordable(ONE, limit, images=images, steps=steps, **fixed) for limit in limits]
    for (some, few), (more, many) in pairwise(found):
        assert some <= more and few <= many
    assert found[-1] == (images, steps)
    least = (images if "fixed_images" in fixed else 16, steps if "fixed_steps" in fixed else 20)
    for limit, (some, few) in zip(limits, found, strict=True):
        assert some * few <= limit or (some, few) == (min(images, least[0]), min(steps, least[1]))


def test_limits_of_efforts_and_of_minutes() -> None:
    assert [limit_of(effort, None) for effort in ("fast", "standard", "paper")] == list(LIMITS.values())
    assert limit_of("fast", 3) == 3 * 60 * 2 * 3e10 == pytest.approx(limit_of("fast", None), rel=0.1)
    assert limit_of("paper", 0.5) == 0.5 * 60 * 2 * 3e10


def fitted(**recipe: object) -> tuple[int, int]:
    """Steps and images of DGH of 500 steps for conv (36 k multiplications), conv and gemm on 8 by 8 pixels."""
    model = FloatModel(graph=plain_network(), source=Path("model.onnx"))
    method, images = Dgh(steps=500).fitted(model, Recipe(**recipe))  # type: ignore[arg-type]
    return method.steps, images


def test_a_recipe_bounds_a_method() -> None:
    assert fitted() == (500, 256)
    assert fitted(minutes=1e-9) == (20, 16)
    assert fitted(minutes=1e-9, images=40) == (20, 40)
    assert fitted(minutes=1e-9, steps=500) == (500, 16)
    assert fitted(minutes=1e-9, settings={"dgh": {"steps": 500}}) == (500, 16)
    assert fitted(minutes=1e-9, settings={"zeroq": {"steps": 500}}) == (20, 16)
    assert fitted(effort="standard")[1] == 512


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_minutes_that_are_none(minutes: float) -> None:
    with pytest.raises(InputError, match="minutes"):
        Recipe(minutes=minutes)


def test_minutes_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(Recipe(minutes=2.5).to_toml())
    assert Recipe.load(path).minutes == 2.5
    path.write_text("minutes = 2\n")
    assert Recipe.load(path).minutes == 2


@pytest.mark.slow
def test_counts_that_were_chosen_are_told_and_repeat_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    ir.save(plain_network(), path)
    given = {"method": "dgh", "normalize": "none", "seed": 4, "minutes": 1e-6}
    result = onnxdfq.compress(path, output=tmp_path / "a.onnx", **given)
    assert result.images is not None and len(result.images) == 16
    assert result.metrics["images"] == 16
    note = (
        "--minutes 1e-06 comes to 16 images of 20 steps for this model; --minutes, --images and --steps say otherwise."
    )
    assert note in result.notes
    entries = {entry.key: entry.value for entry in onnx.load(tmp_path / "a.onnx").metadata_props}
    assert {key.rpartition(".")[2]: value for key, value in entries.items()}.items() >= {
        "steps": "20",
        "images": "16",
    }.items()
    onnxdfq.compress(path, output=tmp_path / "b.onnx", **given)
    del given["minutes"]
    again = onnxdfq.compress(path, output=tmp_path / "c.onnx", **given, images=16, steps=20)
    bytes_written = [(tmp_path / f"{name}.onnx").read_bytes() for name in "abc"]
    assert bytes_written[0] == bytes_written[1] == bytes_written[2]
    assert not any("comes to" in note for note in again.notes)


def test_own_images_are_not_bounded(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    ir.save(plain_network(), path)
    images = np.random.default_rng(0).standard_normal((40, 1, 8, 8)).astype(np.float32)
    result = onnxdfq.compress(path, minutes=1e-6, calibration=images, output=tmp_path / "a.onnx")
    assert result.metrics["images"] == 35  # an eighth is held back
    assert not any("comes to" in note for note in result.notes)
