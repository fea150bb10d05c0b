"""TorchGraph: outputs and taps, parameters, streaming, errors."""

import gc
import weakref
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onnxdfq.engine import Replacement, TorchGraph
from onnxdfq.errors import InputError, UnsupportedOperator

NETWORK = """
network (float[N, 3, 8, 8] image, float[8, 3, 3, 3] "conv.weight", float[8] "conv.bias",
         float[8] "bn/scale", float[8] "bn/bias", float[8] "bn/mean", float[8] "bn/var",
         float zero, float six, float[5, 8] "head.weight", float[5] "head.bias") => (float[N, 5] logits)
{
  conv = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (image, "conv.weight", "conv.bias")
  normal = BatchNormalization (conv, "bn/scale", "bn/bias", "bn/mean", "bn/var")
  clipped = Clip (normal, zero, six)
  pooled = GlobalAveragePool (clipped)
  count = Shape <start = 0, end = 1> (pooled)
  rest = Constant <value_ints = [-1]> ()
  wanted = Concat <axis = 0> (count, rest)
  flat = Reshape (pooled, wanted)
  logits = Gemm <transB = 1> (flat, "head.weight", "head.bias")
}
"""
FLOATS = ("conv", "normal", "clipped", "pooled", "flat", "logits")
INTEGERS = {"count": [4], "rest": [-1], "wanted": [4, -1]}


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = {"conv.weight": (8, 3, 3, 3), "head.weight": (5, 8), "head.bias": 5}
    shapes |= dict.fromkeys(("conv.bias", "bn/scale", "bn/bias", "bn/mean", "bn/var"), 8)
    drawn = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return drawn | {"bn/var": np.abs(drawn["bn/var"]) + 0.5, "zero": np.float32(0), "six": np.float32(6)}


@pytest.fixture
def model(make_model: Callable[..., ir.Model], arrays: dict[str, np.ndarray]) -> ir.Model:
    """A small network whose names hold dots and slashes."""
    return make_model(NETWORK, arrays)


@pytest.fixture
def image() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _native(image: Tensor, arrays: Mapping[str, np.ndarray | Tensor]) -> dict[str, Tensor]:
    """All float values, by torch's own functions."""
    w = {name: torch.as_tensor(array) for name, array in arrays.items()}
    conv = F.conv2d(image, w["conv.weight"], w["conv.bias"], stride=2, padding=1)
    normal = F.batch_norm(conv, w["bn/mean"], w["bn/var"], w["bn/scale"], w["bn/bias"])
    clipped = F.hardtanh(normal, 0.0, 6.0)
    pooled = F.adaptive_avg_pool2d(clipped, 1)
    flat = pooled.flatten(1)
    values = (conv, normal, clipped, pooled, flat, F.linear(flat, w["head.weight"], w["head.bias"]))
    return dict(zip(FLOATS, values, strict=True))


def test_default_outputs_are_those_of_the_graph(model: ir.Model, image: Tensor, arrays: dict[str, np.ndarray]) -> None:
    engine = TorchGraph(model)
    assert (engine.input_names, engine.output_names) == (("image",), ("logits",))
    (logits,) = engine(image)
    torch.testing.assert_close(logits, _native(image, arrays)["logits"])


def test_taps_on_every_value(model: ir.Model, image: Tensor, arrays: dict[str, np.ndarray]) -> None:
    names = ["image", "head.bias", *FLOATS[::-1], *INTEGERS, "logits"]
    got = TorchGraph(model, outputs=names)(image)
    expected = _native(image, arrays) | {"image": image, "head.bias": torch.from_numpy(arrays["head.bias"])}
    for name, value in zip(names, got, strict=True):
        torch.testing.assert_close(
            value.tolist() if name in INTEGERS else value, INTEGERS.get(name, expected.get(name))
        )


@pytest.mark.parametrize("name", FLOATS)
def test_gradient_to_the_input(name: str, model: ir.Model, image: Tensor, arrays: dict[str, np.ndarray]) -> None:
    image.requires_grad_()
    (tap,) = TorchGraph(model, outputs=[name])(image)
    weight = torch.randn(tap.shape, generator=torch.Generator().manual_seed(1))
    (got,) = torch.autograd.grad((tap * weight).sum(), image)
    (expected,) = torch.autograd.grad((_native(image, arrays)[name] * weight).sum(), image)
    torch.testing.assert_close(got, expected)


def test_nothing_trains_unless_named(model: ir.Model, image: Tensor) -> None:
    engine = TorchGraph(model, trainable=["conv.weight", "bn/scale", "six"])
    engine(image)[0].square().sum().backward()
    trained = {name for name, tensor in engine.initializers.items() if tensor.grad is not None}
    assert trained == {"conv.weight", "bn/scale", "six"}
    assert not any(tensor.requires_grad for tensor in TorchGraph(model).initializers.values())
    assert TorchGraph(model)(image)[0].grad_fn is None


def test_gradient_to_parameters(model: ir.Model, image: Tensor, arrays: dict[str, np.ndarray]) -> None:
    names = ["conv.weight", "bn/scale", "head.bias"]
    engine = TorchGraph(model, trainable=names)
    native = {name: torch.tensor(arrays[name], requires_grad=True) for name in names}
    got = torch.autograd.grad(engine(image)[0].square().sum(), [engine.initializers[name] for name in names])
    logits = _native(image, {**arrays, **native})["logits"]
    torch.testing.assert_close(got, torch.autograd.grad(logits.square().sum(), list(native.values())))


def test_only_what_the_outputs_need_is_kept(model: ir.Model, image: Tensor) -> None:
    engine = TorchGraph(model, outputs=["conv"])
    assert set(engine.initializers) == {"conv.weight", "conv.bias"}
    assert engine(image)[0].shape == (4, 8, 4, 4)


def test_one_plan_per_shape_and_no_shape_arithmetic_in_it(model: ir.Model) -> None:
    engine = TorchGraph(model)
    for batch in (2, 3, 2):
        assert engine(torch.zeros(batch, 3, 8, 8))[0].shape == (batch, 5)
    assert len(engine._plans) == 2
    for plan in engine._plans.values():
        assert [step.label.split()[0] for step in plan.steps] == [
            "Conv", "BatchNormalization", "Clip", "GlobalAveragePool", "Reshape", "Gemm",
        ]  # fmt: skip


def test_stream_yields_in_order_and_frees_what_is_dead(model: ir.Model, image: Tensor) -> None:
    engine = TorchGraph(model, outputs=["flat", "conv", "image", "pooled", "normal"])
    alive: dict[str, weakref.ref[Tensor]] = {}
    with torch.no_grad():
        for name, value in engine.stream(image.clone()):
            alive[name] = weakref.ref(value)
            del value
            gc.collect()
            still = [other for other, reference in alive.items() if reference() is not None]
            # A value lives until its last reader ran, and a step later at most the value just made.
            readers = {"image": ["image"], "conv": ["image", "conv"], "normal": ["conv", "normal"]}
            assert set(still) <= set(readers.get(name, ["normal", "pooled", "flat"]))
    assert list(alive) == ["image", "conv", "normal", "pooled", "flat"]
    assert all(reference() is None for reference in alive.values())


def test_stream_holds_one_activation_at_a_time(make_model: Callable[..., ir.Model]) -> None:
    """A chain of 20 values, all tapped: when one is yielded only its predecessor may still be there."""
    chain = "\n".join(f"v{i + 1} = Relu (v{i})" for i in range(20))
    engine = TorchGraph(
        make_model(f"chain (float[N] v0) => (float[N] v20) {{ {chain} }}"), outputs=[f"v{i}" for i in range(1, 21)]
    )
    references: list[weakref.ref[Tensor]] = []
    for _, value in engine.stream(torch.zeros(3)):
        references.append(weakref.ref(value))
        del value
        assert sum(reference() is not None for reference in references) <= 2
    assert len(references) == 20


def test_write_back_is_bit_for_bit(make_model: Callable[..., ir.Model]) -> None:
    """NaN payloads, negative zero and half types included; untouched tensors are not even replaced."""
    text = """network (float[3] x, float[3] a, bfloat16[3] b, float16[3] c) => (float[3] y)
    { bf = Cast <to = 1> (b)
      cf = Cast <to = 1> (c)
      y = Sum (x, a, bf, cf) }"""
    odd = np.array([np.float32(-0.0), np.float32("nan"), np.float32(1e-45)], np.float32)
    odd.view(np.uint32)[1] = 0x7FC12345
    model = make_model(text, {"a": odd, "b": odd.astype(ml_dtypes.bfloat16), "c": odd.astype(np.float16)})
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    engine = TorchGraph(model, trainable=["a"])
    engine.write_back(model)
    assert all(value.const_value is before[name] for name, value in model.graph.initializers.items())

    with torch.no_grad():
        engine.initializers["a"].copy_(torch.tensor([1.0, 2.0, 3.0]))
        engine.initializers["b"].copy_(torch.tensor([1.0, 2.0, 3.0]))
    engine.write_back(model)
    after = model.graph.initializers
    assert after["c"].const_value is before["c"]
    assert after["b"].const_value is not None
    assert after["b"].const_value.dtype is ir.DataType.BFLOAT16
    assert after["b"].const_value.numpy().tolist() == [1.0, 2.0, 3.0]
    assert TorchGraph(model)(torch.zeros(3))[0][0].item() == 2.0
    assert odd.view(np.uint32)[1] == 0x7FC12345, "the engine trains a copy, never the arrays of the model"


def test_write_back_into_another_model_is_refused(model: ir.Model, make_model: Callable[..., ir.Model]) -> None:
    other = make_model("network (float[N] x) => (float[N] y) { y = Relu (x) }")
    with pytest.raises(InputError, match=r"no initializer '.*' of shape .*write back into the model"):
        TorchGraph(model).write_back(other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{ y = Gelu_v2 (x) }",
            r"Gelu_v2 node 'y': .* 'Gelu_v2' of domain 'ai.onnx', and ONNX Runtime does not run it",
        ),
        ("{ y = com.acme.Relu (x) }", r"'Relu' of domain 'com.acme', and ONNX Runtime does not run it"),
        ("{ y = Softmax <temperature = 2> (x) }", r"Softmax node 'y': .* Unrecognized attribute: temperature"),
    ],
)
def test_what_nothing_runs_is_named(text: str, message: str, make_model: Callable[..., ir.Model]) -> None:
    model = make_model(f"network (float[N] x) => (float[N] y) {text}")
    with pytest.raises(UnsupportedOperator, match=message):
        TorchGraph(model)(torch.ones(2))


def test_ai_onnx_is_the_default_domain(make_model: Callable[..., ir.Model]) -> None:
    model = make_model("network (float[N] x) => (float[N] y) { y = ai.onnx.Relu (x) }")
    assert TorchGraph(model)(torch.tensor([-1.0, 2.0]))[0].tolist() == [0.0, 2.0]


def test_unknown_names_are_refused(model: ir.Model) -> None:
    with pytest.raises(InputError, match="no value named 'nowhere'"):
        TorchGraph(model, outputs=["nowhere"])
    with pytest.raises(InputError, match="'nowhere' cannot train"):
        TorchGraph(model, trainable=["nowhere"])
    with pytest.raises(InputError, match=r"'head.bias' cannot train.*on which the requested outputs depend"):
        TorchGraph(model, outputs=["conv"], trainable=["head.bias"])
    with pytest.raises(InputError, match=r"1 inputs \('image',\), 0 were given"):
        TorchGraph(model)()


def test_an_error_while_running_names_the_node(model: ir.Model) -> None:
    said = "(.*have 3 channels, but got 5|Invalid channel dimensions)"  # torch's words, on the CPU and while planned
    with pytest.raises(InputError, match=rf"Conv node 'conv' cannot be computed: {said}"):
        TorchGraph(model)(torch.zeros(4, 5, 8, 8))


def test_initializers_that_are_also_inputs_are_not_asked_for(model: ir.Model, image: Tensor) -> None:
    expected = TorchGraph(model)(image)
    model.graph.inputs.append(model.graph.initializers["conv.weight"])
    engine = TorchGraph(model)
    assert engine.input_names == ("image",)
    torch.testing.assert_close(engine(image), expected)


def test_values_may_be_given_instead_of_computed(model: ir.Model, image: Tensor, arrays: dict[str, np.ndarray]) -> None:
    native = _native(image, arrays)
    weight = torch.as_tensor(arrays["head.weight"]).clone().requires_grad_()
    part = TorchGraph(model, inputs=["clipped", "head.weight"], outputs=["pooled", "logits"])
    assert part.input_names == ("clipped", "head.weight")
    assert not set(part.initializers) & {"conv.weight", "head.weight"}
    pooled, logits = part(native["clipped"], weight)
    torch.testing.assert_close(pooled, native["pooled"])
    torch.testing.assert_close(logits, native["logits"])
    (gradient,) = torch.autograd.grad(logits.sum(), weight)
    torch.testing.assert_close(gradient, native["flat"].sum(0).expand(5, 8))


def test_what_is_given_has_to_suffice(model: ir.Model) -> None:
    with pytest.raises(InputError, match="depend on the input 'image'"):
        TorchGraph(model, inputs=["clipped"], outputs=["logits", "conv"])
    with pytest.raises(InputError, match="no value named 'absent'"):
        TorchGraph(model, inputs=["absent"])


def test_a_value_may_be_computed_by_something_else(
    model: ir.Model, image: Tensor, arrays: dict[str, np.ndarray]
) -> None:
    native = _native(image, arrays)
    half = Replacement(source="normal", function=lambda value: value / 2)
    graph = TorchGraph(model, outputs=["clipped", "pooled"], replacements={"clipped": half})
    clipped, pooled = graph(image)
    torch.testing.assert_close(clipped, native["normal"] / 2)
    torch.testing.assert_close(pooled, (native["normal"] / 2).mean((2, 3), keepdim=True))
    assert not {"zero", "six"} & set(graph.initializers)
    assert graph.replacement_names == ("clipped",)
    assert TorchGraph(model, outputs=["normal"], replacements={"clipped": half}).replacement_names == ()
    source = half.source
    (found,) = TorchGraph(model, inputs=[source], outputs=["clipped"], replacements={"clipped": half})(torch.ones(2))
    assert found.tolist() == [0.5, 0.5]  # nothing before the source is asked for
