"""The step beside the engine: the same losses and the same numbers, step by step."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx_ir.passes import common

from onnxdfq.engine import TorchGraph
from onnxdfq.model_file.through_proto import infer_shapes
from passes.training.losses import Loss
from passes.training.optimizers import MOMENTUM, Optimizer
from passes.training.parameters import Choice, Parameter, find_parameters
from passes.training.step import PARAMETER, SHIPPED, Step, training_step
from tests.graphs import plain_network

from .conftest import SIDE, quantized

Arrays = Mapping[str, NDArray[np.generic]]
STEPS, RATE = 4, 0.02


def prepared(model: ir.Model) -> ir.Model:
    copy = model.clone()
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    infer_shapes(copy, strict=False)
    return copy


def made(
    model: ir.Model, choice: Choice, *, loss: Loss = "cross-entropy", optimizer: Optimizer = "adam"
) -> tuple[tuple[Parameter, ...], Step]:
    output = model.graph.outputs[0]
    parameters = find_parameters(model.graph, output, choice)
    return parameters, training_step(model, output.name or "", parameters, loss=loss, optimizer=optimizer)


def states(
    step: Step, batch: Arrays, *, optimised: bool = True
) -> Iterator[tuple[float, dict[str, NDArray[np.generic]]]]:
    """Of a few steps on one batch, the loss and the state behind each."""
    options, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(step.model).SerializeToString(), options)
    state = dict(step.state)
    takes = [entry.name for entry in session.get_inputs()]
    names = [entry.name for entry in session.get_outputs()]
    for _ in range(STEPS):
        feeds = {**state, **batch, "learning_rate": np.array(RATE, np.float32)}
        found = dict(zip(names, session.run(None, {name: feeds[name] for name in takes}), strict=True))
        loss = float(found.pop("loss"))
        state = {name.removeprefix("next:"): np.asarray(array) for name, array in found.items()}
        yield loss, state


def trained(step: Step, batch: Arrays) -> tuple[list[float], dict[str, NDArray[np.generic]]]:
    """The losses, and the state behind the last."""
    found = list(states(step, batch))
    return [loss for loss, _ in found], found[-1][1]


class Engine:
    """The forward graph of a step in torch, with the engine's gradients."""

    def __init__(self, model: ir.Model, step: Step, parameters: Sequence[Parameter], loss: Loss) -> None:
        output = model.graph.outputs[0]
        self.keys = [PARAMETER + one.name for one in parameters]
        self.graph = TorchGraph(step.model, outputs=[output.name or ""], inputs=["image", *self.keys])
        self.judge = {"cross-entropy": F.cross_entropy, "mse": F.mse_loss}[loss]

    def loss(self, batch: Arrays, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        images, wanted = (torch.from_numpy(array) for array in batch.values())
        found: torch.Tensor = self.judge(self.graph(images, *tensors)[0], wanted)
        return found


def assert_same_gradients(
    model: ir.Model, choice: Choice, batch: Arrays, loss: Loss, *, optimised: bool = True
) -> None:
    """At the state of each step, the engine's loss and gradients are those of the step: what momentum gained."""
    parameters, step = made(model, choice, loss=loss, optimizer="sgd")
    engine, before = Engine(model, step, parameters, loss), step.state
    for value, after in states(step, batch, optimised=optimised):
        tensors = [torch.from_numpy(np.array(before[key])).requires_grad_() for key in engine.keys]
        expected = engine.loss(batch, tensors)
        expected.backward()
        assert value == pytest.approx(expected.item(), rel=1e-5)
        gradients = [tensor.grad.numpy() for tensor in tensors if tensor.grad is not None]
        # those of scales are sums of thousands of numbers that nearly cancel
        close = 5e-6 * max(float(np.abs(gradient).max()) for gradient in gradients)
        for key, gradient in zip(engine.keys, gradients, strict=True):
            found = after[f"momentum:{key}"] - MOMENTUM * before[f"momentum:{key}"]
            np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=close, err_msg=key)
        before = after


@pytest.mark.parametrize("choice", ["head", "biases", "all"])
@pytest.mark.parametrize("bits", [4, 8])
def test_its_gradients_are_the_engines(choice: Choice, bits: int, data: Arrays) -> None:
    """With powers of two sums are exact, in whatever order and in integer kernels, too."""
    batch = {"image": data["image"][:16], "labels": data["labels"][:16]}
    assert_same_gradients(prepared(quantized(bits)), choice, batch, "cross-entropy")


@pytest.mark.parametrize("choice", ["head", "biases", "scales", "all"])
@pytest.mark.parametrize("bits", [4, 8])
def test_its_gradients_are_the_engines_with_any_scales(choice: Choice, bits: int, data: Arrays) -> None:
    """Away from sums that are zero but for their rounding, where the kink of a Relu lies."""
    model = prepared(quantized(bits, "free", off=True))
    batch = {"image": data["image"][:16], "labels": data["labels"][:16]}
    assert_same_gradients(model, choice, batch, "cross-entropy", optimised=False)


def test_targets_may_be_numbers(data: Arrays) -> None:
    target = np.random.default_rng(5).normal(size=(16, 5)).astype(np.float32)
    assert_same_gradients(prepared(quantized(8)), "all", {"image": data["image"][:16], "target": target}, "mse")


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_its_optimizers_are_torchs(optimizer: Optimizer, data: Arrays) -> None:
    """On a float model, whose numbers lie on no edge."""
    model = prepared(plain_network(side=SIDE))
    batch = {"image": data["image"][:16], "labels": data["labels"][:16]}
    parameters, step = made(model, "all", optimizer=optimizer)
    engine = Engine(model, step, parameters, "cross-entropy")
    tensors = [torch.from_numpy(np.array(step.state[key])).requires_grad_() for key in engine.keys]
    momentum = {"momentum": MOMENTUM} if optimizer == "sgd" else {}
    torchs = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer](tensors, lr=RATE, **momentum)
    expected = []
    for _ in range(STEPS):
        loss = engine.loss(batch, tensors)
        torchs.zero_grad()
        loss.backward()
        torchs.step()
        expected.append(loss.item())
    losses, state = trained(step, batch)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert losses[-1] < losses[0]
    for key, tensor in zip(engine.keys, tensors, strict=True):
        np.testing.assert_allclose(state[key], tensor.detach().numpy(), rtol=1e-3, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_shipped_is_what_was_trained(bits: int, data: Arrays) -> None:
    """The file with its initializers replaced computes what the next step's forward pass would."""
    model = prepared(quantized(bits, "free"))
    batch = {"image": data["image"][:16], "labels": data["labels"][:16]}
    _, step = made(model, "all")
    _, state = trained(step, batch)
    again = Step(model=step.model, state=state)
    shipped = model.clone()
    for key, array in state.items():
        if key.startswith(SHIPPED):
            value = shipped.graph.initializers[key.removeprefix(SHIPPED)]
            assert value.const_value is not None and array.dtype == value.const_value.numpy().dtype
            assert bits == 8 or value.dtype != ir.DataType.INT8 or np.abs(array.astype(int)).max() <= 8
            value.const_value = ir.tensor(array, name=value.name)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(shipped).SerializeToString(), options)
    logits = torch.from_numpy(session.run(None, {"image": batch["image"]})[0])
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch["labels"])).item()
    assert trained(again, batch)[0][0] == pytest.approx(loss, rel=1e-5)


def test_a_softmax_at_the_end_is_looked_through(data: Arrays) -> None:
    model = prepared(quantized(8))
    logits = model.graph.outputs[0]
    node = ir.node("Softmax", [logits], outputs=[ir.val("p", ir.DataType.FLOAT, logits.shape)])
    model.graph.append(node)
    model.graph.outputs[0] = node.outputs[0]
    batch = {"image": data["image"][:16], "labels": data["labels"][:16]}
    losses, _ = trained(made(model, "head")[1], batch)
    assert losses == trained(made(prepared(quantized(8)), "head")[1], batch)[0]


def test_powers_of_two_stay_unless_scales_are_asked_for() -> None:
    model = prepared(quantized(8))
    assert {one.kind for one in made(model, "all")[0]} == {"integer", "float"}
    assert {one.kind for one in made(model, "scales")[0]} == {"scale"}
    assert {one.kind for one in made(prepared(quantized(8, "free")), "all")[0]} == {"integer", "float", "scale"}


def test_integer_biases_train_on_the_grid_of_the_accumulator(data: Arrays) -> None:
    model = prepared(quantized(8, target="espdl"))
    parameters, step = made(model, "biases")
    grid = [one.name for one in parameters if one.kind == "accumulator"]
    assert grid
    losses, state = trained(step, {"image": data["image"][:1], "labels": data["labels"][:1]})
    assert losses[-1] < losses[0]
    for name in grid:
        assert state[SHIPPED + name].dtype == np.int32
        assert (state[SHIPPED + name] != step.state[SHIPPED + name]).any()
    with pytest.raises(ValueError, match="so that these cannot train"):
        made(model, "scales")


def test_integer_operators_are_refused() -> None:
    with pytest.raises(ValueError, match="QLinearConv"):
        made(prepared(quantized(8, target="tflite")), "biases")
