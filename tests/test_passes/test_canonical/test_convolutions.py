"""Canonicalize, one test per rewrite by its number: convolutions and padding."""

import pytest

from passes.canonical.canonicalize import Canonicalize

from .conftest import PADDED, ZERO_BORDER, f32, i64, only, rand


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize(("stride", "size", "kernel"), [(1, 8, 3), (2, 8, 3), (2, 9, 4), (3, 7, 2), (1, 6, 2)])
def test_6_conv_is_explicit(build, assert_same, auto_pad, stride, size, kernel):
    model = build(
        f"""(float[N,4,{size},{size}] x) => (float[N,6,h,w] y) {{
        y = Conv <auto_pad = "{auto_pad}", strides = [{stride}, {stride}], group = 2> (x, k)
    }}""",
        k=rand(6, 2, kernel, kernel),
    )
    assert_same(model, Canonicalize())
    attributes = only(model, "Conv").attributes
    assert set(attributes) == {"kernel_shape", "strides", "dilations", "group", "pads"}
    assert tuple(attributes["kernel_shape"].as_ints()) == (kernel, kernel)


def test_6_same_padding_by_hand(build):
    # 8 pixels, window 3, stride 2: 4 outputs reach over 9 pixels, and SAME_UPPER puts the one missing at the end.
    text = '(float[N,1,8,8] x) => (float[N,1,4,4] y) { y = Conv <auto_pad = "%s", strides = [2, 2]> (x, k) }'
    for auto_pad, pads in (("SAME_UPPER", (0, 0, 1, 1)), ("SAME_LOWER", (1, 1, 0, 0))):
        model = build(text % auto_pad, k=rand(1, 1, 3, 3))
        Canonicalize()(model)
        assert tuple(only(model, "Conv").attributes["pads"].as_ints()) == pads


def test_6_same_padding_of_an_unknown_size_stays_unless_the_stride_is_one(build, assert_same):
    model = build(
        """(float[N,1,h,w] x) => (float[N,1,h2,w2] y) {
        a = Conv <auto_pad = "SAME_UPPER", dilations = [2, 2]> (x, k)
        y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (a, k)
    }""",
        k=rand(1, 1, 2, 2),
    )
    Canonicalize()(model)
    first, second = model.graph
    assert tuple(first.attributes["pads"].as_ints()) == (1, 1, 1, 1)
    assert second.attributes["auto_pad"].as_string() == "SAME_UPPER"


def test_6_conv_transpose(build, assert_same):
    model = build(
        """(float[N,4,5,5] x) => (float[N,6,h,w] y, float[N,6,10,10] z) {
        y = ConvTranspose <strides = [2, 2], group = 2> (x, k)
        z = ConvTranspose <strides = [2, 2], group = 2, auto_pad = "SAME_UPPER"> (x, k)
    }""",
        k=rand(4, 3, 3, 3),
    )
    assert_same(model, Canonicalize())
    first, second = model.graph
    assert tuple(first.attributes["pads"].as_ints()) == (0, 0, 0, 0)
    assert "auto_pad" in second.attributes and "pads" not in second.attributes


@pytest.mark.parametrize(
    ("pad", "constants"),
    [
        ("Pad(x, pads)", {"pads": ZERO_BORDER}),
        ("Pad(x, pads, zero)", {"pads": ZERO_BORDER, "zero": f32(0)}),
        ("Pad(x, pads, zero, axes)", {"pads": i64(1, 2, 3, 0), "zero": f32(0), "axes": i64(-2, -1)}),
        ('Pad <mode = "constant"> (x, pads, , axes)', {"pads": i64(2, 1, 0, 3), "axes": i64(3, 2)}),
    ],
)
@pytest.mark.parametrize(
    ("reader", "channels", "pads"),
    [
        ("Conv(p, k)", 4, (1, 2, 3, 0)),
        ("Conv <pads = [1, 1, 0, 0]> (p, k)", 4, (2, 3, 3, 0)),
        ("AveragePool <kernel_shape = [4, 4], strides = [2, 2]> (p)", 3, (1, 2, 3, 0)),
        ("AveragePool <kernel_shape = [5, 5], pads = [0, 0, 1, 1], count_include_pad = 1> (p)", 3, (1, 2, 4, 1)),
    ],
)
def test_7_zero_pad_merges(build, assert_same, operators, pad, constants, reader, channels, pads):
    weights = {"k": rand(4, 3, 3, 3)} if "Conv" in reader else {}
    model = build(PADDED.format(pad=pad, reader=reader, channels=channels), **constants, **weights)
    assert_same(model, Canonicalize())
    assert "Pad" not in operators(model)
    (node,) = model.graph
    assert tuple(node.attributes["pads"].as_ints()) == pads


@pytest.mark.parametrize(
    ("pad", "constants", "reader", "channels"),
    [
        ("Pad(x, pads, one)", {"pads": ZERO_BORDER, "one": f32(1)}, "Conv(p, k)", 4),
        ('Pad <mode = "reflect"> (x, pads)', {"pads": ZERO_BORDER}, "Conv(p, k)", 4),
        ("Pad(x, pads)", {"pads": i64(0, 0, -1, 0, 0, 0, 0, 0)}, "Conv(p, k)", 4),
        ("Pad(x, pads)", {"pads": i64(1, 0, 1, 1, 0, 0, 0, 0)}, "Conv(p, k)", 4),
        ("Pad(x, pads)", {"pads": ZERO_BORDER}, "MaxPool <kernel_shape = [4, 4]> (p)", 3),
        ("Pad(x, pads)", {"pads": ZERO_BORDER}, "AveragePool <kernel_shape = [3, 3]> (p)", 3),  # 3 zeros fill a window
        ("Pad(x, pads)", {"pads": ZERO_BORDER}, "AveragePool <kernel_shape = [5, 5], pads = [1, 1, 1, 1]> (p)", 3),
        ("Pad(x, pads)", {"pads": ZERO_BORDER}, "AveragePool <kernel_shape = [4, 4], ceil_mode = 1> (p)", 3),
        ("Pad(x, pads)", {"pads": ZERO_BORDER}, 'Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (p, k)', 4),
    ],
)
def test_7_other_pads_stay_or_stay_right(build, assert_same, operators, pad, constants, reader, channels):
    weights = {"k": rand(4, 3, 3, 3)} if "Conv" in reader else {}
    model = build(PADDED.format(pad=pad, reader=reader, channels=channels), named=False, **constants, **weights)
    assert_same(model, Canonicalize())
    # SAME over a map of known size is resolved first, and then the Pad merges.
    assert ("Pad" in operators(model)) == ("SAME" not in reader)


def test_7_a_pad_with_a_second_reader_stays(build, operators):
    model = build(
        "(float[N,3,8,8] x) => (float[N,4,h,w] y, float[N,3,h2,w2] z) { p = Pad(x, pads) y = Conv(p, k) z = Relu(p) }",
        pads=ZERO_BORDER,
        k=rand(4, 3, 3, 3),
    )
    Canonicalize()(model)
    assert operators(model) == {"Pad": 1, "Conv": 1, "Relu": 1}


def test_7_a_padded_weight_is_no_padded_map(build, operators):
    model = build(
        "(float[N,3,8,8] x, float[4,3,1,1] k) => (float[N,4,h,w] y) { p = Pad(k, pads) y = Conv(x, p) }",
        pads=ZERO_BORDER,
    )
    Canonicalize()(model)
    assert operators(model) == {"Pad": 1, "Conv": 1}
