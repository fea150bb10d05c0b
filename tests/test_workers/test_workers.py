"""Several processes come to the bytes of one; one that fails, hangs or differs ends all, and is named."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner

import onnxdfq
from onnxdfq.cli.main import main
from onnxdfq.errors import InputError, WorkerError
from onnxdfq.methods import DeadLeaves, Dgh, Genie, Mixmix, Noise, ZeroQ
from onnxdfq.methods.method import Method
from onnxdfq.work.checkpoint import Checkpoint, Parts
from onnxdfq.workers import ALONE, Workers
from onnxdfq.workers.place import Place

from ..graphs import DIGITS
from ..slow import slow

MODEL = DIGITS / "digits.onnx"
Together = Callable[..., list[Any]]
# Python 3.12 warns of forks where threads are, which torch has; the children wait for none of them.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_two_workers_make_the_images_of_one(together: Together, tmp_path: Path, small_model: ir.Model) -> None:
    """Three batches, the last of one image: an odd number for each."""
    ir.save(small_model, tmp_path / "model.onnx")

    def made(workers: Workers, name: str) -> None:
        given: dict[str, Any] = {"method": ZeroQ(steps=1, batch_size=2), "images": 5, "workers": workers}
        onnxdfq.synthesize(tmp_path / "model.onnx", output=tmp_path / f"{name}.npz", **given)

    made(ALONE, "one")
    assert together(2, partial(made, name="two")) == [None, None]
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()


def test_tensors_of_all_kinds_come_by_rank(together: Together) -> None:
    def work(workers: Workers) -> Any:
        given = [torch.arange(6, dtype=torch.bfloat16).view(2, 3).T, torch.tensor(True), None][workers.rank]
        found = workers.gather(given)
        assert found[0] is not None and found[1] is not None and found[2] is None
        return found[0].dtype, found[0].tolist(), bool(found[1]), workers.share(workers.rank)

    expected = (torch.bfloat16, [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]], True, 0)
    assert together(3, work) == [expected] * 3


def test_parts_that_the_first_has_kept_are_made_by_nobody(together: Together, tmp_path: Path) -> None:
    path = tmp_path / "images.safetensors"
    Checkpoint(path, "k").save({"0": torch.zeros(2), "3": torch.full((2,), 3.0)}, {})

    def work(workers: Workers) -> Any:
        made: list[int] = []

        def make(number: int) -> torch.Tensor:
            made.append(number)
            return torch.full((2,), float(number))

        parts = Parts(Checkpoint(path, "k") if workers.first else None, workers)
        found = [float(part[0]) for part in parts.made([partial(make, number) for number in range(5)])]
        return found, made

    order = [0.0, 1.0, 2.0, 3.0, 4.0]
    assert together(2, work) == [(order, [2, 4]), (order, [1])]


@pytest.mark.parametrize(("given", "said"), [({"seed": 1}, "has the seed 1, and rank 0 has 0"), ({"images": 3}, "SHA")])
def test_a_rank_that_was_asked_for_something_else_is_named(
    together: Together, given: dict[str, int], said: str
) -> None:
    def work(workers: Workers) -> None:
        settings: dict[str, Any] = {"images": 2, "method": "noise"} | (given if workers.rank else {})
        onnxdfq.synthesize(MODEL, workers=workers, **settings)

    for error in together(2, work):
        assert isinstance(error, WorkerError) and error.exit_code == 2
        assert "Rank 1 of 2 (" in str(error) and said in str(error)


def test_a_rank_of_another_version_is_named(together: Together) -> None:
    def work(workers: Workers) -> None:
        workers.agree({"onnxdfq": "0.1.0" if workers.rank < 2 else "0.2.0"})

    for error in together(3, work):
        assert "Rank 2 of 3 (" in str(error) and "has onnxdfq 0.2.0, and rank 0 has 0.1.0" in str(error)


def test_a_rank_that_hangs_is_named(together: Together) -> None:
    def work(workers: Workers) -> None:
        if workers.rank == 1:
            time.sleep(2.5)
        workers.gather(None)

    began = time.monotonic()
    for rank, error in enumerate(together(3, work, timeout=1)):
        assert isinstance(error, WorkerError) and error.exit_code == 1, rank
        assert "Rank 1 of 3 (" in str(error) and "has given no sign of life for 1 s" in str(error)
    assert time.monotonic() - began < 10


def test_who_works_for_long_and_shows_it_is_waited_for(together: Together) -> None:
    def work(workers: Workers) -> int:
        step = workers.watched(lambda _: None)("making")
        assert step is not None
        for number in range(30 if workers.rank else 0):
            time.sleep(0.1)
            step(number, 30, "")
        return len(workers.gather(None))

    assert together(2, work, timeout=2) == [2, 2]


def test_what_one_rank_fails_of_ends_all(together: Together) -> None:
    def work(workers: Workers) -> None:
        if workers.rank == 1:
            raise InputError("There is no such file.")
        workers.gather(None)

    first, second = together(2, work)
    assert isinstance(first, WorkerError) and first.exit_code == 2 and str(first) == "There is no such file."
    assert isinstance(second, WorkerError) and second.exit_code == 2
    assert str(second).startswith("Rank 1 of 2 (") and str(second).endswith("): There is no such file.")


TOLD = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("MASTER_ADDR", "", "WORLD_SIZE is 2, and MASTER_ADDR is not set; start all with torchrun, or unset"),
        ("MASTER_PORT", "no", "MASTER_PORT is 'no' in the environment; it must be a whole number, at least 1"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is '0' in the environment; it must be a whole number, at least 1"),
        ("RANK", "2", "RANK is '2' in the environment; it must be a whole number, at least 0 and at most 1"),
        ("ONNXDFQ_TIMEOUT", "-1", "ONNXDFQ_TIMEOUT is '-1' in the environment"),
    ],
)
def test_an_environment_that_does_not_tell_is_refused(name: str, value: str, said: str) -> None:
    done = CliRunner().invoke(main, ["synthesize", str(MODEL), "-o", "no.npz"], env={**TOLD, name: value})
    assert done.exit_code == 2 and done.output.startswith("onnxdfq: ") and said in done.output
    assert done.output.count("\n") == 1


def test_an_environment_of_one_is_alone() -> None:
    assert Place.read({}) is None and Place.read({"WORLD_SIZE": "1", "RANK": "0"}) is None
    place = Place.read({**TOLD, "RANK": "1", "TORCHELASTIC_RESTART_COUNT": "2"})
    assert place is not None and (place.rank, place.local, place.attempt, place.hosted) == (1, 1, 2, False)


def test_other_commands_are_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, lines in ((0, True), (1, False)):
        monkeypatch.setattr("onnxdfq.workers.joining._streams", [])
        done = CliRunner().invoke(main, ["methods"], env={**TOLD, "RANK": str(rank)})
        assert done.exit_code == 0 and bool(done.output) == lines


@pytest.mark.parametrize(
    "method",
    [
        slow(ZeroQ(steps=2, batch_size=3)),
        slow(Genie(steps=2, batch_size=3, latent=8, width=4)),
        slow(Mixmix(steps=2, batch_size=3)),
        slow(DeadLeaves(steps=2, batch_size=3)),
        slow(Noise(batch_size=3)),
    ],
    ids=lambda method: method.name,
)
def test_any_number_of_workers_makes_the_same_images(method: Method, together: Together, tmp_path: Path) -> None:
    def made(workers: Workers, size: int) -> None:
        given: dict[str, Any] = {"method": method, "images": 11, "normalize": "none", "workers": workers}
        onnxdfq.synthesize(MODEL, output=tmp_path / f"{size}.npz", **given)

    made(ALONE, 1)
    for size in (2, 3):
        assert together(size, partial(made, size=size)) == [None] * size
        assert (tmp_path / f"{size}.npz").read_bytes() == (tmp_path / "1.npz").read_bytes()


def test_workers_that_share_a_batch_make_the_same_images(
    together: Together, tmp_path: Path, small_model: ir.Model
) -> None:
    """DGH: batches of 4 and of 3 images in three slices, which two workers look at."""
    ir.save(small_model, tmp_path / "model.onnx")

    def made(workers: Workers, name: str, work: Path | None = None) -> None:
        given: dict[str, Any] = {"method": Dgh(steps=3, batch_size=4, slices=3), "images": 7, "workers": workers}
        onnxdfq.synthesize(tmp_path / "model.onnx", output=tmp_path / f"{name}.npz", work_dir=work, **given)

    made(ALONE, "one")
    assert together(2, partial(made, name="two")) == [None, None]
    assert (tmp_path / "two.npz").read_bytes() == (tmp_path / "one.npz").read_bytes()
