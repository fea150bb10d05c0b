"""Processes that do one run together, forked so that none has to load torch."""

import gc
import os
import pickle
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.workers import Workers, joined

from ..graphs import build, plain_network

Together = Callable[..., list[Any]]


@pytest.fixture
def student_model() -> ir.Model:
    """`small_model` with weights some way off."""
    model, random = plain_network(), np.random.default_rng(0)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        if len(shape := value.const_value.numpy().shape) > 1:
            array = value.const_value.numpy() * (1 + 0.3 * random.standard_normal(shape))
            value.const_value = ir.tensor(array.astype("f4"), name=value.name)
    return model


@pytest.fixture
def one_batch(tmp_path: Path) -> Path:
    """A model that runs at batches of 1 alone."""
    text = "(float[1, 1, 8, 8] x) => (float[1, 3, 6, 6] y) { a = Conv(x, w) y = Concat<axis = 1>(a, t) }"
    random, shapes = np.random.default_rng(0), {"w": (2, 1, 3, 3), "t": (1, 1, 6, 6)}
    arrays = {name: random.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    ir.save(build(text, **arrays), tmp_path / "one.onnx")
    return tmp_path / "one.onnx"


@pytest.fixture
def together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Together:
    """together(size, work, timeout=30): by rank, what `work(workers)` came to, or the error that it raised; None for
    one that was released."""

    monkeypatch.setattr("onnxdfq.workers.joining.LINGER_S", 0.5)

    def run(size: int, work: Callable[[Workers], Any], timeout: int = 30) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        children = []
        for rank in range(size):
            environment = {**common, "RANK": str(rank), "ONNXDFQ_TIMEOUT": str(timeout)}
            if (child := os.fork()) == 0:
                _child(environment, work, tmp_path / f"rank{rank}")
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        return [pickle.loads((tmp_path / f"rank{rank}").read_bytes()) for rank in range(size)]

    return run


def _child(environment: Mapping[str, str], work: Callable[[Workers], Any], place: Path) -> None:
    result: Any = None
    gc.freeze()  # a session of ONNX Runtime that the parent has left waits for threads that are not forked
    try:
        with joined(environment) as workers:
            result = work(workers)
    except BaseException as error:
        result = error
    place.write_bytes(pickle.dumps(result))
    os._exit(0)
