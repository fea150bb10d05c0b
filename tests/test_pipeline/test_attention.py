"""Attention through the whole pipeline: its products are integers, in whatever form it is written."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import onnxdfq

from ..graphs import ATTENTION, ATTENTION_IN_ONE, build, vit
from .conftest import Level, run


@pytest.mark.parametrize(("attention", "opset"), [(ATTENTION, 21), (ATTENTION_IN_ONE, 23)], ids=["parts", "one"])
def test_products_of_an_attention_are_integers(attention: str, opset: int) -> None:
    result = onnxdfq.compress(
        vit(attention=attention, opset=opset), method="dead-leaves", images=16, bits="w8a8", normalize="0.5/0.25"
    )
    assert float(result.metrics["sqnr_db_held_back"] or 0) > 20
    products = [node for node in result.model.graph if node.op_type == "MatMul"]
    assert len(products) == 5 and not any(node.op_type == "Attention" for node in result.model.graph)
    for node in products:
        producers = [value.producer() for value in node.inputs if value is not None]
        assert [producer and producer.op_type for producer in producers] == ["DequantizeLinear"] * 2


# Of tokens, of which `seen` says which count, as torch writes it and as ONNX's own operator has it.
MASKED = """(float[N,6,8] x, int64[N,6] seen) => (float[N,6,8] y) {{
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    {attention}
    y = MatMul (o, wo)
}}"""
MASKS = {
    "infinite": """t = Transpose <perm=[0,2,1]> (k) s = MatMul (q, t) b = Cast <to=9> (seen) u = Unsqueeze (b, middle)
        a = Where (u, zero, infinite) m = Add (s, a) w = Softmax (m) n = IsNaN (w) g = Where (n, zero, w)
        o = MatMul (g, v)""",
    "low": """t = Transpose <perm=[0,2,1]> (k) s = MatMul (q, t) f = Cast <to=1> (seen) r = Sub (one, f)
        a = Mul (r, low) u = Unsqueeze (a, middle) m = Add (s, u) w = Softmax (m) o = MatMul (w, v)""",
    "one operator": """b = Cast <to=9> (seen) u = Unsqueeze (b, heads) e = Expand (u, square)
        o = Attention <q_num_heads=1, kv_num_heads=1, scale=1.0> (q, k, v, e)""",
}


@pytest.mark.parametrize("form", MASKS)
def test_padding_is_masked_in_the_written_file(form: str, tmp_path: Path) -> None:
    """What calibrates has no padding: data-free, an input of integers is 1 everywhere."""
    random = np.random.default_rng(0)
    weights = {name: random.normal(0, 0.6, (8, 8)).astype("f4") for name in ("wq", "wk", "wv", "wo")}
    constants = {"zero": np.float32(0), "one": np.float32(1), "low": np.float32(-1e4), "infinite": np.float32(-np.inf)}
    lists = {"middle": np.array([1]), "heads": np.array([1, 2]), "square": np.array([1, 1, 6, 6])}
    used = {name: np.asarray(array) for name, array in (weights | constants | lists).items()}
    model = build(MASKED.format(attention=MASKS[form]), opset=23, **used)
    source, output = tmp_path / "m.onnx", tmp_path / "q.onnx"
    ir.save(model, source)
    onnxdfq.compress(source, output=output, method="noise", images=64, bits="w8a8", scheme="free")
    x, seen = random.normal(size=(32, 6, 8)).astype("f4"), np.arange(6) < np.arange(32)[:, None] % 5 + 1
    feeds = {"x": x, "seen": seen.astype(np.int64)}
    (wanted,), (found,) = (run(path, feeds, Level.ORT_ENABLE_ALL) for path in (source, output))
    assert 10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()) > 20


@pytest.mark.parametrize("target", ["ort", "generic", "qnn"])
def test_norms_that_are_divided_by_are_not_rounded_to_0(target: str, tmp_path: Path) -> None:
    """Of some tokens they are far less than a step of what others take; such a file computed NaN, and was refused."""
    random = np.random.default_rng(0)
    text = """(float[1,8,16] x) => (float[1,8,4] y) {
        h = MatMul (x, w)  n = ReduceL2 <keepdims=1> (h, last)  c = Clip (n, least)  d = Div (h, c)  y = MatMul (d, v)
    }"""
    model = build(
        text,
        w=random.normal(size=(16, 16)).astype("f4"),
        v=random.normal(size=(16, 4)).astype("f4"),
        last=np.array([2]),
        least=np.array(1e-12, "f4"),
    )
    ir.save(model, tmp_path / "m.onnx")
    x = random.normal(size=(64, 8, 16)).astype("f4")
    x[:, ::8] *= 1e-4
    np.savez(tmp_path / "x.npz", x=x)
    result = onnxdfq.compress(
        tmp_path / "m.onnx", output=tmp_path / "q.onnx", calibration=tmp_path / "x.npz", target=target, images=64
    )
    assert float(result.metrics["sqnr_db_images"] or 0) > 8  # one token of eight is lost where it comes in
