"""A float student trains as torch trains it, and comes back as ONNX."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from onnxdfq.errors import InputError
from onnxdfq.recipe.choices import Statistics
from onnxdfq.training.float_student import FloatStudent
from onnxdfq.training.parameters import trainable_initializers
from onnxdfq.training.rates import FloatRates

from ..graphs import build, plain_network


def student_of(model: ir.Model, statistics: Statistics = "batch", **given: object) -> FloatStudent:
    names = frozenset(model.graph.initializers)
    outputs = [str(value.name) for value in model.graph.outputs]
    return FloatStudent(model, inputs=["image"], outputs=outputs, names=names, statistics=statistics, **given)  # type: ignore[arg-type]


def arrays(model: ir.Model) -> dict[str, NDArray[np.float32]]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items() if value.const_value}


def test_a_step_is_that_of_torch() -> None:
    model = plain_network()
    student = student_of(model, momentum=0.25)
    (c0, s0, b0, m0, v0), (c1, s1, b1, m1, v1), (head,) = _layers(model)
    own = {
        name: torch.tensor(array, requires_grad=name not in (m0, v0, m1, v1)) for name, array in arrays(model).items()
    }
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((16, 1, 8, 8)).astype("f4"))
    y = functional.conv2d(x, own[c0], padding=1)
    y = functional.batch_norm(y, own[m0], own[v0], own[s0], own[b0], True, 0.25, 1e-5).relu()
    y = functional.conv2d(y, own[c1], padding=1, stride=2)
    y = functional.batch_norm(y, own[m1], own[v1], own[s1], own[b1], True, 0.25, 1e-5).relu()
    y = y.flatten(1) @ own[head]
    groups = FloatRates(rate=0.5, weight_decay=0.1).groups(student)
    mine = torch.optim.SGD([{"params": g.parameters, "lr": g.rate, "weight_decay": g.weight_decay} for g in groups])
    weights, vectors = [c0, c1, head], [s0, b0, s1, b1]
    theirs = torch.optim.SGD(
        [
            {"params": [own[name] for name in weights], "lr": 0.5, "weight_decay": 0.1},
            {"params": [own[name] for name in vectors], "lr": 0.5},
        ]
    )
    (found,) = student.train()(x)
    torch.testing.assert_close(found, y)
    for value, optimizer in ((found, mine), (y, theirs)):
        value.square().mean().backward()
        optimizer.step()
    assert student.numbers().keys() == own.keys()
    for name, array in student.numbers().items():
        np.testing.assert_allclose(array, own[name].detach().numpy(), atol=1e-5, err_msg=name)
        assert not np.array_equal(array, arrays(model)[name]), name


def _layers(model: ir.Model) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names of the initializers of each convolution with its BatchNormalization, and of the last layer."""
    names = [str(value.name) for node in model.graph for value in node.inputs[1:] if value is not None]
    return tuple(names[:5]), tuple(names[5:10]), tuple(names[10:])


@pytest.mark.parametrize("statistics", ["batch", "fixed"])
def test_fixed_statistics_stay_and_others_run_along(statistics: Statistics) -> None:
    model = plain_network()
    student = student_of(model, statistics)
    x = torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        found, again = student.train()(x)[0], student.eval()(x)[0]
    assert torch.allclose(found, again) == (statistics == "fixed")
    held = [str(node.inputs[3].name) for node in model.graph if node.op_type == "BatchNormalization" and node.inputs[3]]
    assert all((name in student.numbers()) == (statistics == "batch") for name in held)


def test_pruned_weights_stay_zero() -> None:
    model = plain_network()
    name = next(name for name, array in arrays(model).items() if array.ndim == 4)
    pruned = arrays(model)[name].copy()
    pruned[np.random.default_rng(0).random(pruned.shape) < 0.5] = 0
    model.graph.initializers[name].const_value = ir.tensor(pruned, name=name)
    student = student_of(model)
    optimizer = torch.optim.SGD(
        [{"params": g.parameters, "lr": g.rate, "weight_decay": g.weight_decay} for g in FloatRates().groups(student)],
        momentum=0.9,
        nesterov=True,
    )
    for _ in range(3):
        optimizer.zero_grad()
        student.train()(torch.randn(8, 1, 8, 8))[0].square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    now = student.numbers()[name]
    np.testing.assert_array_equal(now == 0, pruned == 0)
    assert not np.array_equal(now, pruned)


def test_what_is_part_of_a_formula_does_not_train() -> None:
    text = """(float[N,3,4,4] x) => (float[N,2] y) {
        scaled = Div (x, deviation)  a = Conv <pads = [0,0,0,0]> (scaled, w, b)  c = Clip (a, low, high)
        p = Pow (c, two)  g = GlobalAveragePool (p)  f = Flatten (g)  m = MatMul (f, v)  y = Add (m, bias)
    }"""
    scalar = {name: np.float32(number).reshape(()) for name, number in {"low": 0, "high": 6, "two": 2}.items()}
    random = np.random.default_rng(0)
    model = build(
        text,
        deviation=np.ones((1, 3, 1, 1), "f4"),
        w=random.normal(size=(4, 3, 1, 1)).astype("f4"),
        b=np.zeros(4, "f4"),
        v=random.normal(size=(4, 2)).astype("f4"),
        bias=np.zeros(2, "f4"),
        **scalar,
    )
    assert trainable_initializers(model) == ("w", "b", "v", "bias")


def test_shared_statistics_are_refused() -> None:
    text = """(float[N,2,4,4] image) => (float[N,2,4,4] y) {
        a = BatchNormalization (image, s, b, m, v)  y = BatchNormalization (a, s, b, m, v)
    }"""
    ones, zeros = np.ones(2, "f4"), np.zeros(2, "f4")
    shared = build(text, s=ones, b=zeros, m=zeros, v=ones)
    with pytest.raises(InputError, match="share the statistics 'm'"):
        student_of(shared)
    assert student_of(shared, "fixed").numbers().keys() == {"s", "b"}


def test_a_network_without_weights_is_refused() -> None:
    model = build("(float[N,2,4,4] image) => (float[N,2,4,4] y) { y = Relu (image) }")
    with pytest.raises(InputError, match="no weights that train"):
        student_of(model)
