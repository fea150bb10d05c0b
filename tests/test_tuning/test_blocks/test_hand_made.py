"""Blocks of small graphs whose answer is known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.tuning.blocks import MOST_LAYERS, Block, find_blocks, find_layers

Build = Callable[..., ir.Model]
Check = Callable[..., None]


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).normal(0, 0.3, shape).astype("f4")


def conv(out: str, source: str, name: str, size: int = 1, group: int = 1, stride: int = 1) -> str:
    pad = size // 2
    return (
        f"{out} = Conv <kernel_shape=[{size},{size}], pads=[{pad},{pad},{pad},{pad}], strides=[{stride},{stride}], "
        f"dilations=[1,1], group={group}> ({source}, {name})\n"
    )


def seen(blocks: tuple[Block, ...]) -> list[tuple[str, str, str, tuple[str, ...]]]:
    return [(block.kind, block.entry, block.exit, block.weights) for block in blocks]


def test_a_plain_run_comes_layer_by_layer(build: Build, assert_blocks: Check) -> None:
    body = conv("a", "x", "w1", 3) + "b = Relu (a)\n" + "c = MaxPool <kernel_shape=[2,2], strides=[2,2]> (b)\n"
    body += conv("d", "c", "w2", 3) + "e = Gelu (d)\n" + "f = GlobalAveragePool (e)\n g = Flatten (f)\n"
    body += "y = Gemm <transB=1> (g, w3, bias)\n"
    model = build(
        f"(float[N,3,8,8] x) => (float[N,5] y) {{ {body} }}",
        w1=weight(4, 3, 3, 3), w2=weight(6, 4, 3, 3), w3=weight(5, 6), bias=weight(5),
    )  # fmt: skip
    wanted = [("plain", "x", "b", ("w1",)), ("plain", "c", "e", ("w2",)), ("plain", "g", "y", ("w3",))]
    for blocks in (find_blocks(model), find_layers(model)):
        assert seen(blocks) == wanted
        assert not any(block.fallback for block in blocks)
        assert_blocks(model, blocks)
    assert find_layers(model)[0].nodes == ("Conv_a", "Relu_b")


def test_a_convolution_that_scales_channels_is_a_normalization(build: Build, assert_blocks: Check) -> None:
    body = conv("a", "x", "w1", 3) + "b = Gelu (a)\n" + conv("n", "b", "scales", group=4) + conv("y", "n", "w2", 3)
    model = build(
        f"(float[N,3,8,8] x) => (float[N,5,8,8] y) {{ {body} }}",
        w1=weight(4, 3, 3, 3), scales=weight(4, 1, 1, 1), w2=weight(5, 4, 3, 3),
    )  # fmt: skip
    blocks = find_blocks(model)
    assert seen(blocks) == [("plain", "x", "n", ("w1",)), ("plain", "n", "y", ("w2",))]
    assert_blocks(model, blocks)
    assert seen(find_layers(model)) == [("plain", "x", "b", ("w1",)), ("plain", "n", "y", ("w2",))]


def test_basic_blocks_take_the_activation_after_the_sum(build: Build, assert_blocks: Check) -> None:
    body = conv("s", "x", "stem", 3) + "a = Relu (s)\n"
    body += conv("b", "a", "w1", 3) + "c = Relu (b)\n" + conv("d", "c", "w2", 3) + "e = Add (d, a)\n f = Relu (e)\n"
    body += conv("g", "f", "w3", 3, stride=2) + "h = Relu (g)\n" + conv("i", "h", "w4", 3)
    body += conv("j", "f", "down", 1, stride=2) + "k = Add (i, j)\n y = Relu (k)\n"
    three = weight(4, 4, 3, 3)
    model = build(
        f"(float[N,3,8,8] x) => (float[N,4,4,4] y) {{ {body} }}",
        stem=weight(4, 3, 3, 3), w1=three, w2=three, w3=three, w4=three, down=weight(4, 4, 1, 1),
    )  # fmt: skip
    blocks = find_blocks(model)
    assert seen(blocks) == [
        ("plain", "x", "a", ("stem",)),
        ("residual", "a", "f", ("w1", "w2")),
        ("residual", "f", "y", ("w3", "w4", "down")),
    ]
    assert_blocks(model, blocks)
    layers = find_layers(model)
    assert [(layer.entry, layer.exit) for layer in layers] == [
        ("x", "a"), ("a", "c"), ("c", "d"), ("f", "h"), ("h", "i"), ("f", "j"),
    ]  # fmt: skip
    assert_blocks(model, layers)


def test_a_bottleneck_before_its_activations(build: Build, assert_blocks: Check) -> None:
    """Pre-activation: the sum is read by the skip and by the next branch, so nothing is drawn in behind it."""
    body = "a = Relu (x)\n" + conv("b", "a", "w1") + "c = Relu (b)\n" + conv("d", "c", "w2", 3) + "e = Relu (d)\n"
    body += conv("f", "e", "w3") + "g = Add (f, x)\n h = Relu (g)\n" + conv("i", "h", "w4", 3) + "y = Add (g, i)\n"
    model = build(
        f"(float[N,4,5,5] x) => (float[N,4,5,5] y) {{ {body} }}",
        w1=weight(2, 4, 1, 1), w2=weight(2, 2, 3, 3), w3=weight(4, 2, 1, 1), w4=weight(4, 4, 3, 3),
    )  # fmt: skip
    blocks = find_blocks(model)
    assert seen(blocks) == [("residual", "x", "g", ("w1", "w2", "w3")), ("residual", "g", "y", ("w4",))]
    assert_blocks(model, blocks)


def squeeze(out: str, source: str, name: str) -> str:
    body = (
        f"{out}p = GlobalAveragePool ({source})\n"
        + conv(f"{out}1", f"{out}p", f"{name}1")
        + f"{out}2 = Relu ({out}1)\n"
    )
    return (
        body + conv(f"{out}3", f"{out}2", f"{name}2") + f"{out}4 = Sigmoid ({out}3)\n {out} = Mul ({source}, {out}4)\n"
    )


INVERTED = {
    "expand": weight(8, 4, 1, 1), "deep": weight(8, 1, 3, 3), "se1": weight(2, 8, 1, 1), "se2": weight(8, 2, 1, 1),
    "project": weight(4, 8, 1, 1),
}  # fmt: skip


def test_an_inverted_residual_with_squeeze_and_excitation_and_silu(build: Build, assert_blocks: Check) -> None:
    body = conv("a", "x", "expand") + "b = Sigmoid (a)\n c = Mul (a, b)\n" + conv("d", "c", "deep", 3, group=8)
    body += "e = Sigmoid (d)\n f = Mul (d, e)\n" + squeeze("g", "f", "se") + conv("h", "g", "project")
    body += "y = Add (h, x)\n"
    model = build(f"(float[N,4,5,5] x) => (float[N,4,5,5] y) {{ {body} }}", **INVERTED)
    blocks = find_blocks(model)
    assert seen(blocks) == [("inverted residual", "x", "y", ("expand", "deep", "se1", "se2", "project"))]
    assert_blocks(model, blocks)


def test_without_a_skip_the_layers_around_a_depthwise_one_go_together(build: Build, assert_blocks: Check) -> None:
    stem = conv("s", "x", "stem", 3) + "t = Clip (s, low, high)\n"
    body = conv("a", "t", "expand") + "b = Sigmoid (a)\n c = Mul (a, b)\n" + conv("d", "c", "deep", 3, 8, 2)
    body += "e = Sigmoid (d)\n f = Mul (d, e)\n" + squeeze("g", "f", "se") + conv("y", "g", "project")
    model = build(
        f"(float[N,3,6,6] x) => (float[N,4,3,3] y) {{ {stem} {body} }}",
        **INVERTED, stem=weight(4, 3, 3, 3), low=np.float32(0), high=np.float32(6),
    )  # fmt: skip
    blocks = find_blocks(model)
    assert seen(blocks) == [
        ("plain", "x", "t", ("stem",)),
        ("inverted residual", "t", "y", ("expand", "deep", "se1", "se2", "project")),
    ]
    assert_blocks(model, blocks)
    assert len(find_layers(model)) == 6


def test_depthwise_and_pointwise_go_in_pairs(build: Build, assert_blocks: Check) -> None:
    body = conv("a", "x", "deep", 3, 8) + "b = Relu (a)\n" + conv("c", "b", "project") + "d = Relu (c)\n"
    body += conv("e", "d", "expand") + "y = Relu (e)\n"
    weights = {name: INVERTED[name] for name in ("deep", "project", "expand")}
    model = build(f"(float[N,8,5,5] x) => (float[N,8,5,5] y) {{ {body} }}", **weights)
    blocks = find_blocks(model)
    assert seen(blocks) == [("plain", "x", "d", ("deep", "project")), ("plain", "d", "y", ("expand",))]
    assert_blocks(model, blocks)


def dense(layers: int) -> tuple[str, dict[str, np.ndarray[Any, Any]]]:
    """Every layer reads the concatenation of all before it."""
    body, given, weights = "", ["x"], {}
    for index in range(layers):
        source = given[0]
        if index:
            source = f"c{index}"
            body += f"{source} = Concat <axis=1> ({', '.join(given)})\n"
        body += conv(f"h{index}", source, f"w{index}", 3) + f"r{index} = Relu (h{index})\n"
        weights[f"w{index}"] = weight(2, 2 + 2 * index, 3, 3)
        given.append(f"r{index}")
    return body + f"y = Concat <axis=1> ({', '.join(given)})\n", weights


def test_a_dense_block(build: Build, assert_blocks: Check) -> None:
    body, weights = dense(3)
    model = build(f"(float[N,2,4,4] x) => (float[N,8,4,4] y) {{ {body} }}", **weights)
    blocks = find_blocks(model)
    assert seen(blocks) == [("dense", "x", "y", ("w0", "w1", "w2"))]
    assert_blocks(model, blocks)


def test_a_dense_block_that_is_too_long_falls_back_to_layers(build: Build, assert_blocks: Check) -> None:
    body, weights = dense(MOST_LAYERS + 1)
    model = build(f"(float[N,2,4,4] x) => (float[N,24,4,4] y) {{ {body} }}", **weights)
    blocks = find_blocks(model)
    assert [block.weights for block in blocks] == [(name,) for name in weights]
    assert {block.fallback for block in blocks} == {
        "The part from 'x' to 'y' is tuned layer by layer: it has 11 layers, and a block has at most 10."
    }
    assert_blocks(model, blocks)


def test_concatenations_one_after_another_are_blocks_of_their_own(build: Build, assert_blocks: Check) -> None:
    body = conv("a", "x", "w1", 3) + "b = Concat <axis=1> (x, a)\n" + conv("c", "b", "w2", 3)
    body += "d = Concat <axis=1> (b, c)\n" + conv("e", "d", "w3") + "y = Add (e, x)\n"
    model = build(
        f"(float[N,2,4,4] x) => (float[N,2,4,4] y) {{ {body} }}",
        w1=weight(2, 2, 3, 3), w2=weight(2, 4, 3, 3), w3=weight(2, 6, 1, 1),
    )  # fmt: skip
    blocks = find_blocks(model)
    assert seen(blocks) == [
        ("dense", "x", "b", ("w1",)), ("dense", "b", "d", ("w2",)), ("plain", "d", "e", ("w3",)),
    ]  # fmt: skip
    assert "'x' to 'y'" in blocks[2].fallback and "several follow one another" in blocks[2].fallback
    assert_blocks(model, blocks)


def test_branches_that_begin_with_a_split(build: Build, assert_blocks: Check) -> None:
    body = "a, b = Split <axis=1, num_outputs=2> (x)\n" + conv("c", "b", "w", 3) + "y = Concat <axis=1> (a, c)\n"
    model = build(f"(float[N,4,4,4] x) => (float[N,4,4,4] y) {{ {body} }}", w=weight(2, 2, 3, 3))
    blocks = find_blocks(model)
    assert seen(blocks) == [("dense", "x", "y", ("w",))]
    assert_blocks(model, blocks)


ATTENTION = """
    q0 = MatMul ({0}, wq) k0 = MatMul ({0}, wk) v0 = MatMul ({0}, wv)
    size = Shape <start=0, end=1> ({0})
    to = Concat <axis=0> (size, rest)
    q1 = Reshape (q0, to) k1 = Reshape (k0, to) v1 = Reshape (v0, to)
    q = Transpose <perm=[0,2,1,3]> (q1) k = Transpose <perm=[0,2,3,1]> (k1) v = Transpose <perm=[0,2,1,3]> (v1)
    s0 = MatMul (q, k)
    root = Sqrt (four)
    s1 = Div (s0, root)
    s = Softmax (s1)
    m0 = MatMul (s, v)
    m1 = Transpose <perm=[0,2,1,3]> (m0)
    m = Reshape (m1, back)
    o = MatMul (m, wo)
"""
ATTENTION_WEIGHTS = {
    **{name: weight(8, 8) + index for index, name in enumerate(("wq", "wk", "wv", "wo"))},
    "rest": np.array([6, 2, 4], "i8"), "back": np.array([0, 6, 8], "i8"), "four": np.float32(4),
    "f1": weight(8, 16), "f2": weight(16, 8), "gain": np.ones(8, "f4"), "shift": np.zeros(8, "f4"),
}  # fmt: skip


def test_a_transformer_with_the_normalization_first(build: Build, assert_blocks: Check) -> None:
    body = "n = LayerNormalization (x, gain, shift)" + ATTENTION.format("n") + "a = Add (x, o)\n"
    body += (
        "n2 = LayerNormalization (a, gain, shift) h = MatMul (n2, f1) g = Gelu (h) h2 = MatMul (g, f2) y = Add (a, h2)"
    )
    model = build(f"(float[N,6,8] x) => (float[N,6,8] y) {{ {body} }}", **ATTENTION_WEIGHTS)
    blocks = find_blocks(model)
    assert seen(blocks) == [
        ("transformer", "x", "a", ("wq", "wk", "wv", "wo")),
        ("transformer", "a", "y", ("f1", "f2")),
    ]
    assert {"Shape_size", "Concat_to", "Sqrt_root"} <= set(blocks[0].nodes), "all that it needs to run"
    assert_blocks(model, blocks)


def test_a_transformer_with_the_normalization_last(build: Build, assert_blocks: Check) -> None:
    body = ATTENTION.format("x") + "a = Add (x, o) b = LayerNormalization (a, gain, shift)\n"
    body += "h = MatMul (b, f1) g = Relu (h) h2 = MatMul (g, f2) c = Add (b, h2)\n"
    # the same normalization in pieces
    body += "mean = ReduceMean <keepdims=1> (c, last) d = Sub (c, mean) d2 = Mul (d, d) v2 = ReduceMean (d2, last)\n"
    body += "sd = Sqrt (v2) z = Div (d, sd) y = Mul (z, gain)\n"
    model = build(f"(float[N,6,8] x) => (float[N,6,8] y) {{ {body} }}", **ATTENTION_WEIGHTS, last=np.array([-1], "i8"))
    blocks = find_blocks(model)
    assert seen(blocks) == [
        ("transformer", "x", "b", ("wq", "wk", "wv", "wo")),
        ("residual", "b", "y", ("f1", "f2")),
    ]
    assert_blocks(model, blocks)


def test_a_mask_from_another_input_leaves_of_attention_the_scores(build: Build, assert_blocks: Check) -> None:
    text = ATTENTION.replace("s = Softmax (s1)", "s2 = Add (s1, mask) s = Softmax (s2)").format("x")
    model = build(
        f"(float[N,6,8] x, float[6,6] mask) => (float[N,6,8] y) {{ {text} y = Add (x, o) }}", **ATTENTION_WEIGHTS
    )
    blocks = find_blocks(model)
    assert [block.weights for block in blocks] == [("wq", "wk"), ("wv",), ("wo",)]
    assert_blocks(model, blocks)


def test_a_size_from_outside_makes_no_block(build: Build, assert_blocks: Check) -> None:
    body = "s = Shape (x)\n" + conv("a", "x", "w1") + conv("b", "a", "w2") + "c = Relu (b) d = Expand (c, s)\n"
    body += "y = Add (a, d)\n"
    model = build(
        f"(float[N,2,3,3] x) => (float[N,2,3,3] y) {{ {body} }}", w1=weight(2, 2, 1, 1), w2=weight(2, 2, 1, 1)
    )
    blocks = find_blocks(model)
    assert seen(blocks) == [("plain", "x", "a", ("w1",)), ("plain", "a", "c", ("w2",))]
    assert blocks[1].fallback == "The part from 'a' to 'y' is tuned layer by layer: Shape 'Shape_s' needs 'x' as well."
    assert_blocks(model, blocks)


def test_two_heads(build: Build, assert_blocks: Check) -> None:
    """Behind the trunk no value lies on all ways, and still each head has its blocks."""
    body = conv("a", "x", "w1") + "t = Relu (a)\n" + conv("b", "t", "w2") + "c = Add (b, t)\n l = Relu (c)\n"
    body += conv("d", "t", "w3") + "e = Relu (d)\n" + conv("r", "e", "w4")
    weights = {f"w{i}": weight(2, 2, 1, 1) for i in range(1, 5)}
    model = build(f"(float[N,2,3,3] x) => (float[N,2,3,3] l, float[N,2,3,3] r) {{ {body} }}", **weights)
    blocks = find_blocks(model)
    assert seen(blocks) == [
        ("plain", "x", "t", ("w1",)), ("residual", "t", "l", ("w2",)), ("plain", "t", "e", ("w3",)),
        ("plain", "e", "r", ("w4",)),
    ]  # fmt: skip
    assert_blocks(model, blocks)


def test_a_branch_that_is_read_outside_is_no_block(build: Build, assert_blocks: Check) -> None:
    body = conv("a", "x", "w1") + "b = Relu (a)\n" + conv("c", "b", "w2") + "d = Add (c, x)\n" + conv("e", "b", "w3")
    weights = {f"w{i}": weight(2, 2, 1, 1) for i in range(1, 4)}
    model = build(f"(float[N,2,3,3] x) => (float[N,2,3,3] d, float[N,2,3,3] e) {{ {body} }}", **weights)
    blocks = find_blocks(model)
    assert [block.weights for block in blocks] == [("w1",), ("w2",), ("w3",)]
    reason = "The part from 'x' to 'd' is tuned layer by layer: Conv 'Conv_e' reads 'b' too."
    assert [block.fallback for block in blocks] == [reason, reason, ""]
    assert_blocks(model, blocks)


def test_a_value_inside_that_leaves_the_graph(build: Build, assert_blocks: Check) -> None:
    body = conv("a", "x", "w1") + "b = Relu (a)\n d = Add (b, x)\n"
    model = build(f"(float[N,2,3,3] x) => (float[N,2,3,3] d, float[N,2,3,3] a) {{ {body} }}", w1=weight(2, 2, 1, 1))
    (block,) = find_blocks(model)
    assert (block.entry, block.exit) == ("x", "a"), "the activation function is not drawn in either"
    assert block.fallback.endswith("'a' leaves the graph.")
    (layer,) = find_layers(model)
    assert (layer.exit, layer.fallback) == ("a", "")
    assert_blocks(model, (block,))


def test_two_inputs_that_meet(build: Build, assert_blocks: Check) -> None:
    body = conv("a", "x", "w1") + conv("b", "z", "w2") + "c = Add (a, b)\n" + conv("d", "c", "w3") + "y = Add (d, c)\n"
    weights = {f"w{i}": weight(2, 2, 1, 1) for i in range(1, 4)}
    model = build(f"(float[N,2,3,3] x, float[N,2,3,3] z) => (float[N,2,3,3] y) {{ {body} }}", **weights)
    blocks = find_blocks(model)
    assert seen(blocks) == [
        ("plain", "x", "a", ("w1",)), ("plain", "z", "b", ("w2",)), ("residual", "c", "y", ("w3",)),
    ]  # fmt: skip
    assert_blocks(model, blocks)


def test_what_a_subgraph_reads_is_read_by_its_node(build: Build, assert_blocks: Check) -> None:
    body = conv("a", "x", "w1") + "b = Relu (a)\n" + conv("c", "b", "w2") + "d = Add (c, x)\n"
    body += """y = If (yes) <
        then_branch = one () => (float[N,2,3,3] t) { t = Add (d, b) },
        else_branch = two () => (float[N,2,3,3] e) { e = Neg (d) }
    >"""
    model = build(
        f"(float[N,2,3,3] x) => (float[N,2,3,3] y) {{ {body} }}",
        w1=weight(2, 2, 1, 1), w2=weight(2, 2, 1, 1), yes=np.array(True),
    )  # fmt: skip
    blocks = find_blocks(model)
    assert seen(blocks) == [("plain", "x", "y", ("w1", "w2"))], "the sum alone is no block, for 'b' is read in the If"
    assert_blocks(model, blocks)


@pytest.mark.parametrize(("depth", "fell_back"), [(2, 0), (5, 3)])
def test_an_u_net_keeps_what_is_small_enough(build: Build, assert_blocks: Check, depth: int, fell_back: int) -> None:
    """Skips across the whole network: of five levels the outermost is too large, and those inside make a block."""
    down, up, weights = "", "", {}
    source = "x"
    for level in range(depth):
        down += conv(f"a{level}", source, f"e{level}") + f"s{level} = Relu (a{level})\n"
        down += f"p{level} = MaxPool <kernel_shape=[2,2], strides=[2,2]> (s{level})\n"
        source = f"p{level}"
        weights |= {f"e{level}": weight(2, 2, 1, 1), f"f{level}": weight(2, 4, 1, 1), f"g{level}": weight(2, 2, 1, 1)}
    for level in reversed(range(depth)):
        up += f'u{level} = Resize <mode="nearest"> ({source}, , scales)\n'
        up += f"c{level} = Concat <axis=1> (u{level}, s{level})\n"
        up += conv(f"b{level}", f"c{level}", f"f{level}") + f"d{level} = Relu (b{level})\n"
        up += conv(f"h{level}", f"d{level}", f"g{level}")
        source = f"h{level}"
    text = f"(float[N,2,32,32] x) => (float[N,2,32,32] y) {{ {down} {up} y = Relu ({source}) }}"
    model = build(text, scales=np.array([1, 1, 2, 2], "f4"), **weights)
    blocks = find_blocks(model)
    assert ("dense", "s0" if depth == 2 else "s1") in [(block.kind, block.entry) for block in blocks]
    assert sum("12 layers" in block.fallback for block in blocks) == fell_back
    assert_blocks(model, blocks)
