"""`read_quantizers`, `TakeOutQuantizers`: what a QDQ file quantizes how, and the float network behind it."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from passes.quantize.reading import read_quantizers
from passes.quantize.take_out import TakeOutQuantizers

Build = Callable[..., ir.Model]

PAIR = """(float[N,4] x) => (float[N,4] y) {
    q = QuantizeLinear (x, s, z)
    c = Clip (q, low, high)
    r = Reshape (c, shape)
    d = DequantizeLinear (r, s, z)
    w = DequantizeLinear <axis=1> (wq, ws, wz)
    y = MatMul (d, w)
}"""


def pair(build: Build, low: int, high: int, zero: int = 0) -> ir.Model:
    return build(
        PAIR,
        s=np.float32(0.5),
        z=np.uint8(zero),
        low=np.uint8(low),
        high=np.uint8(high),
        shape=np.array([-1, 4]),
        wq=np.arange(-8, 8, dtype=np.int8).reshape(4, 4),
        ws=np.array([1, 2, 3, 4], np.float32),
        wz=np.zeros(4, np.int8),
    )


def test_grids_are_those_of_the_file(build: Build) -> None:
    found = read_quantizers(pair(build, 0, 15).graph)
    (one,), (weight,) = found.activations, found.constants
    assert (one.value, one.source, one.grid.bits, one.grid.ends, one.bounds) == ("q", "x", 4, (0.0, 7.5), (None, None))
    assert one.round_trip([0.26, -3, 9]).tolist() == [0.5, 0, 7.5]
    assert (weight.value, weight.grid.axis, weight.original) == ("w", 1, None)
    assert weight.numbers[0].tolist() == [-8, -14, -18, -20]


@pytest.mark.parametrize(
    ("low", "high", "zero", "bounds"),
    [
        (0, 15, 0, (None, None)),  # four bits
        (120, 135, 128, (None, None)),  # four bits with a sign
        (0, 12, 0, (None, 6.0)),  # a Relu6 on the integers
        (100, 255, 128, (-14.0, None)),
    ],
)
def test_a_clip_that_is_no_width_belongs_to_the_network(
    build: Build, low: int, high: int, zero: int, bounds: tuple[float | None, float | None]
) -> None:
    model = pair(build, low, high, zero)
    found = read_quantizers(model.graph)
    assert found.activations[0].bounds == bounds
    TakeOutQuantizers(found)(model)
    assert [node.op_type for node in model.graph] == [
        "Identity" if bounds == (None, None) else "Clip",
        "Identity",
        "Reshape",
        "Identity",
        "MatMul",
    ]
    assert {value.dtype for node in model.graph for value in node.outputs} == {ir.DataType.FLOAT}
    assert "w" in model.graph.initializers and model.graph.outputs[0].name == "y"


def test_a_constant_that_the_file_quantizes_itself_has_its_original(build: Build) -> None:
    model = build(
        """(float[N,2] x) => (float[N,2] y) {
            q = QuantizeLinear (w, s, z)
            d = DequantizeLinear (q, s, z)
            y = MatMul (x, d)
        }""",
        w=np.array([[0.1, 0.9], [5, -5]], np.float32),
        s=np.float32(0.5),
        z=np.int8(0),
    )
    found = read_quantizers(model.graph)
    assert not found.activations
    (weight,) = found.constants
    assert weight.original is not None and weight.original[0, 0] == np.float32(0.1)
    assert weight.numbers.tolist() == [[0, 1], [5, -5]]
    TakeOutQuantizers(found)(model)
    assert [node.op_type for node in model.graph] == ["MatMul"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q = QuantizeLinear (x, s, z)  i = Cast <to=6> (q)  y = Cast <to=1> (i)", "Cast .* reads the integers"),
        (
            "s2 = ReduceMax <keepdims=0> (x)  q = QuantizeLinear (x, s2, z)  y = DequantizeLinear (q, s, z)",
            "computes its",
        ),
    ],
)
def test_what_is_no_plain_pair_is_told(build: Build, text: str, message: str) -> None:
    model = build(f"(float[N,4] x) => (float[N,4] y) {{ {text} }}", s=np.float32(0.5), z=np.uint8(0))
    with pytest.raises(ValueError, match=message):
        read_quantizers(model.graph)
