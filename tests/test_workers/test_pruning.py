"""Several processes repair a pruned network together, by distillation with fixed statistics."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxdfq
from onnxdfq.errors import InputError, WorkerError
from onnxdfq.methods import Dafl
from onnxdfq.pipeline import pruning_budget
from onnxdfq.workers import ALONE, Workers
from passes.graph.work import work_per_sample

from ..graphs import DIGITS, natural_images
from ..slow import slow

MODEL = DIGITS / "digits.onnx"
IMAGES = natural_images(48, 1, 8)
TRAINING: dict[str, Any] = {"statistics": "fixed", "train_slices": 3, "train_steps": 4}
Together = Callable[..., list[Any]]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def small(tmp_path: Path, small_model: ir.Model) -> Path:
    ir.save(small_model, tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


def pruned(workers: Workers, model: Path, output: Path, **given: Any) -> tuple[str, ...]:
    common: dict[str, Any] = {"repair": "least-squares,distillation", "calibration": IMAGES, **TRAINING}
    return onnxdfq.prune(model, output=output, workers=workers, **common | given).notes


def weights(path: Path) -> dict[str, Any]:
    initializers = ir.load(path).graph.initializers.values()
    return {str(value.name): value.const_value.numpy() for value in initializers if value.const_value is not None}


def test_two_workers_repair_to_the_file_of_one(together: Together, small: Path, tmp_path: Path) -> None:
    work = partial(pruned, model=small, sparsity=0.5)
    work(ALONE, output=tmp_path / "1.onnx")
    first, other = together(2, partial(work, output=tmp_path / "2.onnx"))
    assert "2 workers make the images together, and train together." in first and other is None
    assert (tmp_path / "2.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()
    work(ALONE, output=tmp_path / "start.onnx", repair="least-squares", **dict.fromkeys(TRAINING))
    learned, start = (weights(tmp_path / name) for name in ("1.onnx", "start.onnx"))
    assert any(not np.array_equal(learned[name], start[name]) for name in start), "it learned"
    assert all(np.array_equal(learned[name] == 0, start[name] == 0) for name in start if start[name].ndim > 1)


@pytest.mark.parametrize(
    "given",
    [
        slow({"channels": 0.2}),
        slow({"channels": 0.2, "repair": "moments,least-squares,distillation"}),
        slow({"pattern": "2:4", "repair": "distillation"}),
        slow({"budget": "macs=0.7"}),
        slow({"channels": 0.2, "calibration": None, "method": "zeroq", "steps": 2, "images": 37, "batch_size": 16}),
        slow({"channels": 0.2, "calibration": None, "method": Dafl(warm_up=4), "images": 37}),
    ],
    ids=["channels", "all-repairs", "pattern", "budget", "zeroq", "dafl"],
)
def test_any_number_of_workers_prunes_to_the_same_file(
    given: dict[str, Any], together: Together, tmp_path: Path
) -> None:
    pruned(ALONE, MODEL, tmp_path / "1.onnx", **given)
    for size in (2, 3):
        first, *others = together(size, partial(pruned, model=MODEL, output=tmp_path / f"{size}.onnx", **given))
        assert f"{size} workers make the images together, and train together." in first
        assert others == [None] * (size - 1)
        assert (tmp_path / f"{size}.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()


@pytest.mark.slow
def test_the_first_measures_what_a_budget_of_time_leaves(
    together: Together, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the times of the second other channels would go."""

    class Timed:
        def __init__(self, path: Path, graph: Any) -> None:
            self.share = work_per_sample(graph.graph).macs / whole

    def work(workers: Workers, output: Path, power: float = 1) -> Any:
        def latencies(_: Any, other: Any, __: Any) -> tuple[float, float]:
            return 1.0, getattr(other, "share", 0.8) ** (power + workers.rank)

        monkeypatch.setattr(pruning_budget, "latencies", latencies)
        pruned(workers, small, output, budget="latency=0.8", multiple=1)
        return weights(output)

    whole = work_per_sample(onnxdfq.load(small).graph).macs
    monkeypatch.setattr(pruning_budget, "Session", Timed)
    one, other = (work(ALONE, tmp_path / f"{power}.onnx", power) for power in (1, 2))
    assert any(one[name].shape != other[name].shape for name in one)
    first, second = together(2, partial(work, output=tmp_path / "both.onnx"))
    assert second is None and all(np.array_equal(first[name], array) for name, array in one.items())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sparsity": (0.5, 0.4)}, "has a training of SHA-256 "),
        ({"train_steps": (4, 5)}, "has a training of SHA-256 "),
        ({"train_slices": (3, None)}, "has a recipe of SHA-256 "),
        ({"calibration": (IMAGES, IMAGES + 1)}, "has images of SHA-256 "),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else None,
)
def test_a_rank_that_would_train_something_else_is_named(
    given: dict[str, tuple[Any, Any]], said: str, together: Together, small: Path, tmp_path: Path
) -> None:
    def work(workers: Workers) -> None:
        own = {"sparsity": 0.5} | {name: values[workers.rank] for name, values in given.items()}
        pruned(workers, small, tmp_path / "p.onnx", **own)

    for error in together(2, work):
        assert isinstance(error, WorkerError) and error.exit_code == 2
        assert "Rank 1 of 2 (" in str(error) and said in str(error)


def test_a_model_of_one_batch_size_is_refused(one_batch: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the model runs at batches of 1 alone; leave it out, or export"):
        pruned(ALONE, one_batch, tmp_path / "p.onnx", sparsity=0.5)
