"""What passes log: every rewrite with the node or value that it concerns, at level DEBUG, and nothing else."""

import logging
import pkgutil
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

import passes
from onnxdfq.targets import load_target
from passes import Canonicalize, EqualizeChannels, FoldBatchNorm, WriteForTarget
from passes.dfq.equalize import equalizing_scales
from passes.quantize.plan import QuantPlan, TensorQuant

Build = Callable[..., ir.Model]
TEXT = """(float[N,2,4,4] x) => (float[N,2] y) {
    c = Conv <kernel_shape=[1,1]> (x, w)
    n = BatchNormalization (c, one, zero, zero, one)
    r = Relu (n)
    d = Conv <kernel_shape=[1,1]> (r, w)
    i = Identity (d)
    m = ReduceMean <keepdims=0> (i, axes)
    y = Div (m, two)
}"""
WEIGHTS = {
    "w": np.array([[1, 2], [3, 4]], np.float32).reshape(2, 2, 1, 1),
    "one": np.ones(2, np.float32),
    "zero": np.zeros(2, np.float32),
    "two": np.float32(2),
    "axes": np.array([2, 3]),
}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Lines since the last call, each after its module."""
    caplog.set_level(logging.DEBUG, logger="passes")

    def read() -> list[str]:
        assert {record.levelno for record in caplog.records} <= {logging.DEBUG}
        found = [f"{record.name.rpartition('.')[2]}: {record.getMessage()}" for record in caplog.records]
        caplog.clear()
        return found

    return read


def test_rewrites_say_what_and_where(build: Build, lines: Callable[[], list[str]]) -> None:
    model = build(TEXT, **WEIGHTS)
    Canonicalize()(model)
    said = lines()
    for line in (
        "canonicalize: Identity that computes i goes",
        "canonicalize: Conv_d gets its own copy of w",
        "heads: ReduceMean ReduceMean_m becomes GlobalAveragePool",
        "arithmetic: Div Div_y becomes Mul",
    ):
        assert line in said
    FoldBatchNorm()(model)
    assert "fold_batch_norm: BatchNormalization BatchNormalization_n folds into Conv Conv_c before it" in lines()
    EqualizeChannels(equalizing_scales(model))(model)
    assert lines() == ["equalize: Conv Conv_c: outputs scaled", "equalize: Conv Conv_d: inputs scaled"]
    quant = TensorQuant(bits=8, signed=True, threshold=np.asarray(4.0))
    plan = QuantPlan(activations={"x": quant}, weights={"w": quant})
    WriteForTarget(plan, load_target("generic"))(model)
    said = lines()
    assert "insert_qdq: x is quantized: QuantizeLinear, DequantizeLinear" in said
    assert "insert_qdq: the initializer w becomes int8 and a DequantizeLinear" in said


def test_what_changes_nothing_says_nothing(build: Build, lines: Callable[[], list[str]]) -> None:
    model = build("(float[N,2] x) => (float[N,2] y) { y = Relu (x) }")
    assert not Canonicalize()(model).modified and not FoldBatchNorm()(model).modified
    assert lines() == []


def test_loggers_are_named_after_their_modules() -> None:
    names = {module.name for module in pkgutil.walk_packages(passes.__path__, "passes.")}
    used = {name for name in logging.root.manager.loggerDict if name.startswith("passes.")}
    assert used and used <= names
