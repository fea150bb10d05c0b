"""A reshape to rows goes before the product behind which it stood, and a normalization of the rows then folds."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm

from ...graphs import build
from .conftest import i64, rand

BODY = """(float[N,4,3] x) => (float[N,4,5] y) {{
    p = MatMul (x, w)
    r = {rows}
    n = BatchNormalization (r, scale, shift, mean, var)
    y = Reshape (n, back)
}}"""
NORM = {"scale": rand(5), "shift": rand(5), "mean": rand(5), "var": np.abs(rand(5)) + 1}


def model_of(rows: str) -> ir.Model:
    return build(BODY.format(rows=rows), w=rand(3, 5), flat=i64(-1, 5), apart=i64(-1, 10), back=i64(-1, 4, 5), **NORM)


def outputs(model: ir.Model) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    found: np.ndarray = session.run(None, {"x": np.random.default_rng(0).normal(size=(2, 4, 3)).astype("f4")})[0]
    return found


@pytest.mark.parametrize("rows", ["Reshape (p, flat)", "Flatten <axis=2> (p)"])
def test_a_normalization_of_rows_folds(rows: str) -> None:
    model = model_of(rows)
    before = outputs(model)
    Canonicalize()(model)
    FoldBatchNorm()(model)
    assert [node.op_type for node in model.graph] == ["Reshape", "Gemm", "Reshape"]
    assert {"p", "n"} & {value.name for node in model.graph for value in node.outputs} == {"n"}
    np.testing.assert_allclose(outputs(model), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "(float[N,4,3] x) => (float[M,10] y) { p = MatMul (x, w) y = Reshape (p, apart) }",  # two tokens in a row
        "(float[N,4,3] x) => (float[M,5] y, float[N,4,5] p) { p = MatMul (x, w) y = Reshape (p, flat) }",
        "(float[N,4,3] x, float[N,3,5] z) => (float[M,5] y) { p = MatMul (x, z) y = Reshape (p, flat) }",
    ],
)
def test_what_is_no_product_of_rows_stays(body: str) -> None:
    model = build(body, w=rand(3, 5), flat=i64(-1, 5), apart=i64(-1, 10))
    Canonicalize()(model)
    assert [node.op_type for node in model.graph] == ["MatMul", "Reshape"]
