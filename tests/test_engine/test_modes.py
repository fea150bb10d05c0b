"""The engine under autocast, channels_last and torch.compile, on the shipped kinds of network."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor

from onnxdfq.engine import TorchGraph

from ..slow import all_but

MODELS = (
    "convmixer_cifar10",
    "fastestdet_coco",
    "mobilenetv1_vww",
    "resnet20_cifar10",
    "resnet20_cifar10jpeg",
    "resnet56_cifar10",
    "resnet56_cifar10jpeg",
    "resnet8_cifar10",
    "vit_cifar10",
)
SMALL = ("resnet8_cifar10", "mobilenetv1_vww", "vit_cifar10")


def _image(model: ir.Model, batch: int = 2) -> Tensor:
    shape = model.graph.inputs[0].shape
    assert shape is not None
    size = [batch, *[int(length) for length in list(shape)[1:]]]
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


def _load(shared_data: Path, name: str) -> ir.Model:
    return ir.load(shared_data / "models" / f"{name}.onnx")


@pytest.mark.parametrize("name", all_but(MODELS, MODELS[::3]))
def test_every_value_of_real_models_as_in_onnxruntime(shared_data: Path, name: str) -> None:
    """Raw exports, Constant nodes and shape arithmetic included. Every float value is tapped."""
    model = _load(shared_data, name)
    image = _image(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    proto = ir.to_proto(model)
    known = {value.name for value in model.graph.outputs}
    taps = [value for node in model.graph for value in node.outputs if value.name not in known and value.name]
    proto.graph.output.extend(type(proto.graph.output[0])(name=value.name) for value in taps)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    expected = session.run(None, {model.graph.inputs[0].name: image.numpy()})

    got = TorchGraph(model, outputs=names)(image)
    for tap, actual, wanted in zip(names, got, expected, strict=True):
        assert actual.shape == wanted.shape, tap
        scale = max(1.0, float(np.abs(wanted).max(initial=0.0)))  # errors of sums grow with what is summed
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=2e-5 * scale, err_msg=tap)


@pytest.mark.parametrize("name", SMALL)
def test_autocast_bfloat16_with_channels_last(shared_data: Path, name: str) -> None:
    model = _load(shared_data, name)
    engine = TorchGraph(model)
    image = _image(model)
    (exact,) = engine(image)
    image = image.to(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        (cast,) = engine(image)
    assert (cast.float() - exact).abs().max() < 0.05 * exact.abs().max()
    cast.float().square().sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_channels_last_survives_the_convolutions(shared_data: Path) -> None:
    model = _load(shared_data, "resnet8_cifar10")
    taps = [str(n.outputs[0].name) for n in model.graph if n.op_type in ("Conv", "BatchNormalization", "Relu", "Add")]
    engine = TorchGraph(model, outputs=taps)
    image = _image(model)
    for plain, last in zip(engine(image), engine(image.to(memory_format=torch.channels_last)), strict=True):
        assert last.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8_cifar10", "vit_cifar10"])
def test_compiles_as_one_graph(shared_data: Path, name: str) -> None:
    """Never run before, so the plan is made while torch traces; and again for a second batch size."""
    model = _load(shared_data, name)
    taps = [str(node.outputs[0].name) for node in model.graph if node.op_type in ("Conv", "LayerNormalization")]
    engine = TorchGraph(model, outputs=[*taps, str(model.graph.outputs[0].name)])
    torch.compiler.reset()
    compiled = torch.compile(engine, fullgraph=True, backend="aot_eager")
    image = _image(model).requires_grad_()
    got = compiled(image)
    expected = engine(image)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(values[-1].square().sum(), image)[0] for values in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
    other = _image(model, batch=3)
    torch.testing.assert_close(compiled(other), engine(other), rtol=1e-5, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch about itself, while it loads the backend
def test_compiles_with_inductor(shared_data: Path) -> None:
    model = _load(shared_data, "resnet8_cifar10")
    engine = TorchGraph(model)
    compiled = torch.compile(engine, fullgraph=True)
    image = _image(model)
    torch.testing.assert_close(compiled(image), engine(image), rtol=1e-3, atol=1e-3)
    torch.compiler.reset()


def test_a_plan_made_in_a_passing_mode_serves_later_calls(make_model: Callable[..., ir.Model]) -> None:
    """The rotary table is known beforehand: it may be neither rounded by autocast nor bound to inference mode."""
    text = """network (float[2, 4] x, int64[2] i) => (float y)
    { f = Cast <to = 1> (i)
      t = Unsqueeze <axes = [1]> (f)
      u = Unsqueeze <axes = [0]> (f)
      table = MatMul (t, u)
      y = Gemm (table, x) }"""
    model = make_model(text, {"i": [257, 3]})
    x = torch.ones(2, 4, requires_grad=True)
    expected = [[257.0**2 + 771] * 4, [771.0 + 9] * 4]
    for mode in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.no_grad()):
        engine = TorchGraph(model)
        with mode:
            engine(x)
        (y,) = engine(x)
        assert y.tolist() == expected
        y.sum().backward()


MIXED = {
    "Add": "y = Add (a, b)",
    "Attention": "y = Attention (a, b, b)",
    "Clip": "y = Clip (a, s)",
    "Concat": "y = Concat <axis = 0> (a, b)",
    "Conv": "y = Conv (a, k, c)",
    "ConvTranspose": "y = ConvTranspose <pads = [0, 0, 0, 1]> (a, k, c)",
    "Div": "y = Div (a, b)",
    "Einsum": 'y = Einsum <equation = "nchw,nchw->n"> (a, b)',
    "Gather": "y = Gather (a, i)",
    "GridSample": "y = GridSample (a, g)",
    "GroupNormalization": "y = GroupNormalization <num_groups = 2> (a, c, c)",
    "InstanceNormalization": "y = InstanceNormalization (a, c, c)",
    "LayerNormalization": "y = LayerNormalization <axis = -1> (a, c, c)",
    "MatMul": "y = MatMul (a, b)",
    "Gemm": "f = Flatten (a)\n h = Flatten (b)\n y = Gemm <transB = 1, alpha = 0.5> (f, h, s)",
    "Max": "y = Max (a, b)",
    "Min": "y = Min (b, a)",
    "Mul": "y = Mul (a, b)",
    "PRelu": "y = PRelu (a, s)",
    "Pow": "y = Pow (a, s)",
    "RMSNormalization": "y = RMSNormalization (a, c)",
    "ScatterElements": "y = ScatterElements (a, j, b)",
    "ScatterND": "y = ScatterND (a, n, b)",
    "Sub": "y = Sub (a, b)",
    "Sum": "y = Sum (a, b, s)",
    "Where": "z = Less (a, b)\n y = Where (z, a, b)",
}


@pytest.mark.parametrize("operator", MIXED)
@pytest.mark.parametrize("low_first", [True, False])
def test_mixed_types_under_autocast(operator: str, low_first: bool, make_model: Callable[..., ir.Model]) -> None:
    """A value that a convolution made (bfloat16) meets one that it did not (float32), either way round."""
    text = f"""network (float[2,4,4,4] a, float[2,4,4,4] b, float[4,4,1,1] k, float[4] c, float[1] s, float[2,4,4,2] g,
                        int64[2] i, int64[2,4,4,4] j, int64[2,1] n) => (float y) {{ {MIXED[operator]} }}"""
    generator = np.random.default_rng(0)
    arrays = {
        "k": generator.standard_normal((4, 4, 1, 1)), "c": np.ones(4), "s": [2.0], "i": [1, -2], "n": [[1], [0]],
        "g": generator.uniform(-1, 1, (2, 4, 4, 2)), "j": np.ones((2, 4, 4, 4)),
    }  # fmt: skip
    trainable = [name for name in ("c", "s") if f", {name}" in MIXED[operator]]
    engine = TorchGraph(make_model(text, arrays, opset=23), trainable=trainable)
    first, second = torch.rand(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    low = first.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        (got,) = engine(*((low, second) if low_first else (second, low)))
    (expected,) = engine(*((first, second) if low_first else (second, first)))
    torch.testing.assert_close(got.float(), expected, rtol=3e-2, atol=3e-2)
    if got.requires_grad:
        got.float().sum().backward()
