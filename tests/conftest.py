"""Fixtures shared by all tests."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from . import array_checks

array_checks.install()  # before anything that it checks is imported

from passes.lint.lint import lint  # noqa: E402
from passes.write.write_for_target import WriteForTarget  # noqa: E402

from . import graphs  # noqa: E402
from .graphs import REPOSITORY  # noqa: E402
from .opened_once import sample_opened_once  # noqa: E402

_STARTS: dict[tuple[str, str], Any] = {}  # of the generators of test modules


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models and images beside the checkout, or a skip."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real models and images (../shared/data) are not here")
    return folder


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    """The folder of small models that failed once, or a skip."""
    folder = REPOSITORY.parent / "shared" / "cases"
    if not folder.is_dir():
        pytest.skip("the small models that failed once (../shared/cases) are not here")
    return folder


@pytest.fixture(scope="session", autouse=True)
def signals_are_heard() -> None:
    """A job in the background is started deaf to Ctrl-C, and one under nohup to the end of its terminal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def the_sample_is_opened_once() -> Iterator[None]:
    """See `sample_opened_once`."""
    with sample_opened_once():
        yield


@pytest.fixture(scope="session", autouse=True)
def every_written_file_is_exact() -> Iterator[None]:
    """Whatever a test writes for a target that asks for it holds no weights that a kernel of any processor saturates
    on. Looked up in the file's integers, so that it is told on processors whose kernels do not saturate, too."""
    write = WriteForTarget.call

    def checked(self: WriteForTarget, model: ir.Model) -> ir.passes.PassResult:
        result = write(self, model)
        saturated = [finding.node for finding in lint(result.model, self.target) if not finding.exact]
        assert not saturated, f"kernels without VNNI saturate in {saturated}"
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WriteForTarget, "call", checked)
        yield


@pytest.fixture(autouse=True)
def _same_numbers(request: pytest.FixtureRequest) -> None:
    """Each test draws the same from its module's generators, whatever ran before: tests are dealt out to processes."""
    for name, value in vars(request.module).items():
        if isinstance(value, np.random.Generator):
            key = request.module.__name__, name
            value.bit_generator.state = _STARTS.setdefault(key, value.bit_generator.state)


@pytest.fixture
def no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever begins to make images of noise fails the test."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("this should have been refused before images are made")

    monkeypatch.setattr("onnxdfq.methods.noise.Noise.make", never)


@pytest.fixture
def build() -> Callable[..., ir.Model]:
    """build(text of a graph in ONNX's own syntax, name=array, ...): nodes are called `<operator>_<first output>`."""
    return graphs.build


@pytest.fixture
def two_layers() -> ir.Model:
    """Conv, Relu, pooling, Gemm: see `graphs.two_layers`."""
    return graphs.two_layers()


@pytest.fixture(scope="session")
def nets() -> ModuleType:
    """The builders of `graphs`."""
    return graphs


@pytest.fixture(scope="session")
def small_model() -> ir.Model:
    """8x8 grey images, 5 classes, two BatchNormalizations. Tests only read it."""
    return graphs.plain_network()
