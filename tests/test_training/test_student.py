"""The student: it begins as the plan, trains all that is written, and ships what it computes."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from onnxdfq.engine import TorchGraph
from onnxdfq.training.student import Student
from passes.quantize.grid import is_power_of_two
from passes.quantize.plan import QuantPlan
from passes.write.insert_qdq import InsertQdq

from .conftest import ORT


def written(model: ir.Model, plan: QuantPlan) -> ir.Model:
    found = model.clone()
    InsertQdq(plan, ORT)(found)
    return found


def logits(model: ir.Model, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ONNX Runtime computes, unoptimised."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    found: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: images})[0]
    return found


def step_of(model: ir.Model, plan: QuantPlan) -> float:
    return float(plan.activations[str(model.graph.outputs[0].name)].scale)


def test_it_begins_as_the_plan(model: ir.Model, plan: QuantPlan, images: NDArray[np.float32], scheme: str) -> None:
    student = Student(model, plan, ORT, learn_scales=scheme == "free")
    with torch.no_grad():
        (found,) = student(torch.from_numpy(images))
    assert np.abs(found.numpy() - logits(written(model, plan), images)).max() <= 1.01 * step_of(model, plan)
    assert student.plan().integers.keys() == plan.weights.keys()
    for name, quant in student.plan().weights.items():
        np.testing.assert_allclose(quant.scale, plan.weights[name].scale, rtol=1e-6)
        value = model.graph.initializers[name].const_value
        assert value is not None
        np.testing.assert_array_equal(student.plan().integers[name], plan.weight_integers(name, value.numpy()))


def test_everything_trains_and_what_is_trained_ships(
    model: ir.Model, plan: QuantPlan, images: NDArray[np.float32], scheme: str
) -> None:
    student, batch = Student(model, plan, ORT, learn_scales=scheme == "free"), torch.from_numpy(images)
    parameters = {
        **{f"position {place}": shadow.position for place, shadow in enumerate(student.shadows())},
        **{f"change {place}": shadow.change for place, shadow in enumerate(student.shadows())},
        **{f"bias {layer}": bias for layer, bias in enumerate(student.biases())},
        **{f"scale {place}": scale for place, scale in enumerate(student.scales())},
    }
    assert bool(student.scales()) == (scheme == "free")
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.Adam(parameters.values(), lr=0.02)
    teacher = TorchGraph(model)
    for _ in range(3):
        optimizer.zero_grad()
        (student(batch)[0] - teacher(batch)[0]).square().mean().backward()
        optimizer.step()
    assert [name for name, old in before.items() if torch.equal(old, parameters[name])] == []
    trained = student.plan()
    assert trained.fingerprint != plan.fingerprint
    with torch.no_grad():
        (found,) = student(batch)
    shipped = logits(written(model, trained), images)
    step = step_of(model, trained)
    assert np.abs(found.numpy() - shipped).max() <= 1.01 * step
    assert (np.abs(found.numpy() - shipped) > 0.01 * step).mean() < 0.05
    if scheme == "power-of-two":
        for table in (trained.weights, trained.activations):
            assert all(np.all(is_power_of_two(quant.scale)) for quant in table.values())


@pytest.mark.parametrize("taps", [(), ("/Relu_output_0",)])
def test_inner_values_come_behind_the_outputs(
    model: ir.Model, plan: QuantPlan, images: NDArray[np.float32], taps: tuple[str, ...]
) -> None:
    found = Student(model, plan, ORT, taps=taps)(torch.from_numpy(images[:4]))
    assert len(found) == 1 + len(taps)
