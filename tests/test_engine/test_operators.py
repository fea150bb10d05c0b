"""What the node cases leave open: older forms, gradients of self-made operators, shapes that depend on data."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.ops import OPERATORS
from onnxdfq.errors import InputError

MakeModel = Callable[..., ir.Model]

OLDER_FORMS = {  # operator → node, expected value of x = [[-1, 2], [3, -4]]
    "Clip 6": ("Clip <min = -1.5, max = 2.5> (x)", [[-1.0, 2.0], [2.5, -1.5]]),
    "Pad 2": ("Pad <pads = [0, 0, 0, 1], value = 9.0> (x)", [[-1.0, 2.0, 9.0], [3.0, -4.0, 9.0]]),
    "ReduceSum 1": ("ReduceSum <axes = [0], keepdims = 0> (x)", [2.0, -2.0]),
    "Slice 1": ("Slice <axes = [1], starts = [1], ends = [2]> (x)", [[2.0], [-4.0]]),
    "Split 2": ("Split <axis = 0, split = [1, 1]> (x)", [[-1.0, 2.0]]),
    "TopK 1": ("TopK <k = 1> (x)", [[2.0], [3.0]]),
    "Unsqueeze 1": ("Unsqueeze <axes = [0]> (x)", [[[-1.0, 2.0], [3.0, -4.0]]]),
    "Dropout 6": ("Dropout <ratio = 0.9> (x)", [[-1.0, 2.0], [3.0, -4.0]]),
}


@pytest.mark.parametrize("form", OLDER_FORMS)
def test_attributes_of_older_opsets(form: str, make_model: MakeModel) -> None:
    node, expected = OLDER_FORMS[form]
    engine = TorchGraph(make_model(f"network (float[2, 2] x) => (float y) {{ y = {node} }}"))
    assert engine(torch.tensor([[-1.0, 2.0], [3.0, -4.0]]))[0].tolist() == expected


def test_group_normalization_of_opset_18(make_model: MakeModel) -> None:
    """Scale and bias per group, not yet per channel."""
    text = """network (float[1, 4, 2] x, float[2] s, float[2] b) => (float y)
    { y = GroupNormalization <num_groups = 2> (x, s, b) }"""
    x = torch.randn(1, 4, 2, generator=torch.Generator().manual_seed(0))
    (y,) = TorchGraph(make_model(text, {"s": [2.0, 3.0], "b": [0.5, -0.5]}, opset=18))(x)
    scale, bias = torch.tensor([2.0, 2.0, 3.0, 3.0]), torch.tensor([0.5, 0.5, -0.5, -0.5])
    torch.testing.assert_close(y, F.group_norm(x, 2, scale, bias))


def test_global_lp_pool(make_model: MakeModel) -> None:
    engine = TorchGraph(make_model("network (float[1, 1, 2, 2] x) => (float y) { y = GlobalLpPool <p = 2> (x) }"))
    assert engine(torch.tensor([[[[1.0, 1.0], [1.0, 1.0]]]]))[0].tolist() == [[[[2.0]]]]


# --- shapes that depend on data -----------------------------------------------------------------


def test_shape_after_non_zero_is_read_at_every_call(make_model: MakeModel) -> None:
    text = """network (float[N] x) => (float y, int64[1] count)
    { hits = NonZero (x)
      count = Shape <start = 1> (hits)
      ones = ConstantOfShape (count)
      steps = ReduceSum <keepdims = 0> (count)
      y = Concat <axis = 0> (x, ones) }"""
    engine = TorchGraph(make_model(text))
    for values in ([0.0, 5.0, 0.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]):
        y, count = engine(torch.tensor(values))
        hits = int(np.count_nonzero(values))
        assert count.tolist() == [hits]
        assert y.tolist() == values + [0.0] * hits
    assert len(engine._plans) == 1


def test_detection_head(make_model: MakeModel) -> None:
    """Best boxes after suppression, gathered: the end of an SSD. Boxes 0 and 1 overlap; 3 scores too little."""
    text = """network (float[1, 4, 4] boxes, float[1, 1, 4] scores, int64 limit, float iou, float least, int64[1] one,
                        int64[1] two, int64[1] three) => (float chosen)
    { picked = NonMaxSuppression (boxes, scores, limit, iou, least)
      last = Slice (picked, two, three, one)
      rows = Squeeze (last, one)
      flat = Squeeze (boxes)
      chosen = Gather (flat, rows) }"""
    arrays = {"limit": 10, "iou": 0.5, "least": 0.2, "one": [1], "two": [2], "three": [3]}
    boxes = torch.tensor([[[0, 0, 2, 2], [0, 0, 2, 2.2], [5, 5, 6, 6], [8, 8, 9, 9]]], dtype=torch.float32)
    boxes.requires_grad_()
    (chosen,) = TorchGraph(make_model(text, arrays))(boxes, torch.tensor([[[0.6, 0.9, 0.5, 0.1]]]))
    torch.testing.assert_close(chosen, boxes[0, [1, 2]])
    assert torch.autograd.grad(chosen.sum(), boxes)[0].sum(dim=-1).tolist() == [[0, 4, 4, 0]]


# --- gradients of what the engine composes itself -----------------------------------------------

T = torch.tensor
SELF_MADE = {  # name → (operator, shape of x, further inputs, attributes)
    "BatchNormalization": ("BatchNormalization", (2, 3, 2, 2), [T([1.0, 2, 3])] * 4, {}),
    "RMSNormalization": ("RMSNormalization", (2, 6), [torch.ones(6)], {}),
    "LayerNormalization, three outputs": ("LayerNormalization", (2, 6), [torch.ones(6)], {"output_count": 3}),
    "LRN": ("LRN", (1, 5, 2, 2), [], {"size": 3, "alpha": 0.5}),
    "LpNormalization": ("LpNormalization", (2, 6), [], {}),
    "AveragePool, padded unevenly": ("AveragePool", (1, 2, 5, 5), [], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 2]}),
    "MaxPool, padded unevenly": ("MaxPool", (1, 2, 5, 5), [], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 2]}),
    "LpPool": ("LpPool", (1, 2, 5, 5), [], {"kernel_shape": [2, 2], "dilations": [2, 1]}),
    "Conv, same": ("Conv", (1, 2, 5, 5), [torch.ones(1, 2, 2, 2)], {"auto_pad": "SAME_UPPER"}),
    "ConvTranspose, cropped": ("ConvTranspose", (1, 2, 3, 3), [torch.ones(2, 1, 3, 3)], {"pads": [0, 0, 1, 1]}),
    "Resize, cubic": ("Resize", (1, 1, 4, 4), [None, (1, 1, 1.6, 0.8)], {"mode": "cubic", "exclude_outside": 1}),
    "Resize, antialias": ("Resize", (1, 1, 6, 6), [None, (1, 1, 0.4, 0.6)], {"mode": "linear", "antialias": 1}),
    "Resize, nearest": ("Resize", (1, 1, 4, 4), [None, None, (1, 1, 7, 3)], {"nearest_mode": "ceil"}),
    "RoiAlign": ("RoiAlign", (1, 2, 6, 6), [T([[0.5, 0.7, 4.2, 5.1]]), T([0])], {"output_height": 2}),
    "Col2Im": ("Col2Im", (1, 8, 4), [(3, 3), (2, 2)], {}),
    "Pad, reflect": ("Pad", (2, 4), [(0, 2, 1, 3)], {"mode": "reflect"}),
    "Pad, wrap": ("Pad", (2, 4), [(0, 2, 1, 3)], {"mode": "wrap"}),
    "PRelu": ("PRelu", (2, 3), [T([0.1, 0.2, 0.3])], {}),
    "Shrink": ("Shrink", (6,), [], {"lambd": 0.2, "bias": 0.1}),
    "CumSum": ("CumSum", (2, 4), [1], {"exclusive": 1, "reverse": 1}),
    "ReduceLogSumExp": ("ReduceLogSumExp", (2, 4), [(1,)], {}),
    "ReduceProd": ("ReduceProd", (2, 4), [], {}),
    "ScatterND": ("ScatterND", (4, 2), [T([[1], [-1]]), torch.ones(2, 2).double()], {"reduction": "mul"}),
    "Gather": ("Gather", (4, 3), [T([[0, -1], [2, 0]])], {"axis": 0}),
    "DepthToSpace": ("DepthToSpace", (1, 8, 2, 2), [], {"blocksize": 2}),
    "RotaryEmbedding": ("RotaryEmbedding", (1, 2, 8), [torch.ones(1, 2, 2)] * 2, {"num_heads": 2, "interleaved": 1}),
    "Slice, backwards": ("Slice", (5, 3), [(-1,), (-9,), (0,), (-2,)], {}),
    "Softmax with mask": ("Attention", (1, 1, 3, 2), [torch.ones(1, 1, 3, 2)] * 2, {"is_causal": 1, "softcap": 2.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", SELF_MADE)
def test_gradient_by_finite_differences(name: str) -> None:
    operator, shape, inputs, attributes = SELF_MADE[name]
    inputs = [value.double() if isinstance(value, Tensor) and value.is_floating_point() else value for value in inputs]
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def first_output(x: Tensor) -> Tensor:
        result = OPERATORS[operator](x, *inputs, **attributes)
        return result if isinstance(result, Tensor) else result[0]

    assert torch.autograd.gradcheck(first_output, (x,))


def test_gradient_of_a_padding_value(make_model: MakeModel) -> None:
    text = "network (float[2] x, int64[2] p, float v) => (float y) { y = Pad (x, p, v) }"
    engine = TorchGraph(make_model(text, {"p": [1, 2], "v": 7.0}), trainable=["v"])
    (y,) = engine(torch.tensor([1.0, 2.0]))
    assert y.tolist() == [7.0, 1.0, 2.0, 7.0, 7.0]
    assert torch.autograd.grad(y.sum(), engine.initializers["v"])[0].item() == 3.0


def test_gradient_of_clip_bounds(make_model: MakeModel) -> None:
    """A clipping threshold that trains (PACT); the other bound is a number."""
    text = "network (float[4] x, float low, float high) => (float y) { y = Clip (x, low, high) }"
    engine = TorchGraph(make_model(text, {"low": 0.0, "high": 1.5}), trainable=["high"])
    (y,) = engine(torch.tensor([-1.0, 1.0, 2.0, 3.0]))
    assert y.tolist() == [0.0, 1.0, 1.5, 1.5]
    assert torch.autograd.grad(y.sum(), engine.initializers["high"])[0].item() == 2.0


@pytest.mark.parametrize("dtype", ["int64", "int32", "int8", "uint8"])
def test_whole_numbers_are_divided_towards_zero_and_nothing_traps(dtype: str, make_model: MakeModel) -> None:
    """On many processors the least integer by -1 ends the process."""
    limits, signed = np.iinfo(dtype), not dtype.startswith("u")
    a = np.array([limits.min, 7, limits.max, 9], dtype)
    b = np.array([-1, -2, -1, 3] if signed else [1, 2, limits.max, 3], dtype)
    (y,) = TorchGraph(make_model(f"network ({dtype}[4] a, {dtype}[4] b) => ({dtype}[4] y) {{ y = Div(a, b) }}"))(
        torch.from_numpy(a), torch.from_numpy(b)
    )
    assert y.tolist() == ([limits.min, -3, -limits.max, 3] if signed else [0, 3, 1, 3])


@pytest.mark.parametrize(
    ("node", "found"),
    [
        ("y = Reshape(x, big)", r"Reshape node 'y' cannot be computed: shape '\[1000\]' is invalid"),
        ("y = Expand(x, big)", "Expand node 'y' cannot be computed"),
        ("y = Slice(x, big, big, big)", "Slice node 'y' cannot be computed"),
        ("y = MaxPool<kernel_shape=[9, 9]>(x)", "MaxPool node 'y' cannot be computed"),
    ],
)
def test_what_cannot_be_computed_is_named(node: str, found: str, make_model: MakeModel) -> None:
    model = make_model(f"network (float[1, 2, 4, 4] x, int64[1] big) => (float y) {{ {node} }}", {"big": [1000]})
    with pytest.raises(InputError, match=found) as caught:
        TorchGraph(model)(torch.zeros(1, 2, 4, 4))
    assert "\n" not in str(caught.value)
