"""Faults that are planted into QDQ models which are good otherwise, each with what a diagnosis has to say first."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdfq.calibration import Calibration
from onnxdfq.images.samples import Samples
from onnxdfq.model_file.loading import prepare_model, read_float_model
from onnxdfq.report.diagnosis.inquiry import inquire
from onnxdfq.report.diagnosis.reading import Quantized
from onnxdfq.report.diagnosis.result import Diagnosis
from onnxdfq.targets import load_target
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.quantize.plan import QuantPlan
from passes.quantize.reading import read_quantizers
from passes.write.write_for_target import WriteForTarget

from .. import graphs

CHAIN = """(float[N,3,8,8] x) => (float[N,6] y) {
    h1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)
    r1 = Relu (h1)
    h2 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (r1, w2, b2)
    r2 = Relu (h2)
    h3 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (r2, w3, b3)
    s = Add (h3, r1)
    r3 = Relu (s)
    p = GlobalAveragePool (r3)
    f = Flatten (p)
    y = Gemm <transB=1> (f, v, c)
}"""
DETECTOR = """(float[N,3,8,8] x) => (float[N,6,8,8] y) {
    h1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)
    r1 = Relu (h1)
    boxes = Conv <kernel_shape=[1,1]> (r1, wb, bb)
    logits = Conv <kernel_shape=[1,1]> (r1, ws, bs)
    scores = Sigmoid (logits)
    y = Concat <axis=1> (boxes, scores)
}"""
BRANCHES = """(float[N,3,8,8] x) => (float[N,4,8,8] y) {
    a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)
    b = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, wb, bb)
    k = Concat <axis=1> (a, b)
    y = Conv <kernel_shape=[1,1]> (k, wk, bk)
}"""


def weights(**shapes: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    """Normal numbers, of a size that keeps that of what they are multiplied with."""
    random = np.random.default_rng(7)
    return {
        name: (random.normal(size=shape) / max(np.prod(shape[1:]), 1) ** 0.5).astype(np.float32)
        if len(shape) > 1
        else random.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def chain() -> ir.Model:
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (16, 16, 3, 3), "v": (6, 16)}
    biases: dict[str, tuple[int, ...]] = {"b1": (16,), "b2": (16,), "b3": (16,), "c": (6,)}
    return graphs.build(CHAIN, **weights(**shapes, **biases))


def detector() -> ir.Model:
    found = weights(w1=(16, 3, 3, 3), b1=(16,), wb=(4, 16, 1, 1), bb=(4,), ws=(2, 16, 1, 1), bs=(2,))
    found["wb"] *= 200
    return graphs.build(DETECTOR, **found)


def branches() -> ir.Model:
    found = weights(w1=(8, 3, 3, 3), b1=(8,), wb=(8, 3, 3, 3), bb=(8,), wk=(4, 16, 1, 1), bk=(4,))
    found["w1"] *= 64
    found["b1"] *= 64
    found["wk"][:, :8] /= 64
    return graphs.build(BRANCHES, **found)


def scaled_channel() -> ir.Model:
    """One channel of r1 is 60 times as large, and what reads it takes that back."""
    model = chain()
    w1, b1, w2 = (model.graph.initializers[name].const_value.numpy().copy() for name in ("w1", "b1", "w2"))
    w1[3], b1[3], w2[:, 3] = w1[3] * 60, np.abs(b1[3]) * 60, w2[:, 3] / 60
    for name, array in (("w1", w1), ("b1", b1), ("w2", w2)):
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    # the sum would be ruled by the channel, too: nothing else reads it
    add = next(node for node in model.graph if node.op_type == "Add")
    add.replace_input_with(1, next(value for node in model.graph for value in node.outputs if value.name == "h2"))
    return model


@cache
def digits() -> ir.Model:
    """The sample's network, folded; nobody edits it."""
    path = graphs.DIGITS / "digits.onnx"
    model = prepare_model(read_float_model(path), path)
    Canonicalize()(model)
    FoldBatchNorm()(model)
    return model


def pixels(model: ir.Model, count: int = 32) -> NDArray[np.float32]:
    shape = [int(side) for side in model.graph.inputs[0].shape[1:]]
    return graphs.natural_images(count, shape[0], shape[1])


PlanEdit = Callable[[QuantPlan], QuantPlan]


def quantized(model: ir.Model, *, target: str = "ort", edit: PlanEdit = lambda plan: plan) -> ir.Model:
    """The model as onnxdfq writes it, free scales; edit: of the plan."""
    rules = load_target(target)
    plan = Calibration(scheme="free").plan(model, pixels(model), rules)
    written = model.clone()
    WriteForTarget(edit(plan), rules)(written)
    return written


Edit = Callable[[ir.Model], None]


def number(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Edit:
    """Another array for the initializer `name`."""

    def edit(model: ir.Model) -> None:
        value = model.graph.initializers[name]
        assert value.const_value is not None
        old = value.const_value.numpy()
        value.const_value = ir.tensor(np.asarray(change(old)).astype(old.dtype), name=name)

    return edit


def times(factor: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    return lambda old: old * factor


def one_channel(channel: int, factor: float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def change(old: NDArray[Any]) -> NDArray[Any]:
        new = old.copy()
        new[channel] *= factor
        return new

    return change


def inquired(model: ir.Model, folded: ir.Model | None, samples: NDArray[Any], **given: Any) -> Diagnosis:
    file = Quantized(path=Path("q.onnx"), model=model, by="a test", quantizers=read_quantizers(model.graph))
    return inquire(file, folded, Samples(main=samples), data="data", **given)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A fault. kind, where: what the first finding has to be, and the layer or the tensor that it has to name."""

    kind: str
    where: str
    make: Callable[[], ir.Model] = chain
    edits: tuple[Edit, ...] = ()
    plan: PlanEdit = lambda plan: plan
    target: str = "ort"

    def models(self) -> tuple[ir.Model, ir.Model]:
        """The float model, and the quantized one with the fault."""
        model = self.make()
        made = quantized(model, target=self.target, edit=self.plan)
        for edit in self.edits:
            edit(made)
        return model, made


def per_tensor(name: str, scale: float | None = None) -> Edit:
    """The weight `name` with one scale for all, by default the one that its greatest number asks for."""

    def edit(model: ir.Model) -> None:
        stored = next(one for one in read_quantizers(model.graph).constants if one.value == name)
        step = float(np.abs(stored.numbers).max()) / 127 if scale is None else scale
        _requantize(model, name, np.asarray(step, np.float32), stored.numbers)
        node = next(node for node in model.graph if node.outputs[0].name == name)
        node.attributes.pop("axis", None)

    return edit


def other_steps(name: str, factor: float) -> Edit:
    """The weight `name` rounded anew, with steps `factor` times as wide."""

    def edit(model: ir.Model) -> None:
        stored = next(one for one in read_quantizers(model.graph).constants if one.value == name)
        _requantize(model, name, (stored.grid.scale * factor).astype(np.float32), stored.numbers)

    return edit


def _requantize(model: ir.Model, name: str, scale: NDArray[np.float32], numbers: NDArray[np.float32]) -> None:
    shape = [-1, *[1] * (numbers.ndim - 1)] if scale.ndim else []
    integers = np.clip(np.rint(numbers / scale.reshape(shape)), -127, 127).astype(np.int8)
    for suffix, array in (("quantized", integers), ("scale", scale), ("zero_point", np.zeros(scale.shape, np.int8))):
        value = model.graph.initializers[f"{name}_{suffix}"]
        value.const_value, value.shape = ir.tensor(array, name=value.name), ir.Shape(array.shape)


def another_scale_behind(name: str, factor: float) -> Edit:
    """DequantizeLinear of the activation `name` gets a scale of its own."""

    def edit(model: ir.Model) -> None:
        node = next(node for node in model.graph if node.name == f"{name}_dequantize")
        scale = model.graph.initializers[f"{name}_scale"].const_value
        assert scale is not None
        tensor = ir.tensor(np.asarray(scale.numpy() * factor, np.float32), name=f"{name}_other")
        value = ir.val(f"{name}_other", tensor.dtype, tensor.shape, const_value=tensor)
        model.graph.register_initializer(value)
        node.replace_input_with(1, value)

    return edit


def grid(name: str, **changes: Any) -> PlanEdit:
    """The activation `name` on another grid, with as good a threshold."""

    def edit(plan: QuantPlan) -> QuantPlan:
        quant = replace(plan.activations.get(name, plan.activations["x"]), **changes)
        return replace(plan, activations={**plan.activations, name: quant})

    return edit


CURVED = """(float[N,3,8,8] x) => (float[N,6,8,8] y) {
    h1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)
    r1 = HardSwish (h1)
    y = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (r1, w2, b2)
}"""
FLOATS = """(float[N,3,8,8] x) => (float[N,6,8,8] y) {
    h1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)
    t = Tanh (h1)
    e = Elu (t)
    y = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (e, w2, b2)
}"""
ATTENDED = """(float[N,3,8,8] x) => (float[N,8,64] y) {
    h1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1, b1)
    t = Reshape (h1, flat)
    k = Transpose <perm=[0,2,1]> (t)
    a = MatMul (k, t)
    p = Softmax <axis=-1> (a)
    q = Transpose <perm=[0,2,1]> (p)
    y = MatMul (t, q)
}"""


def curved() -> ir.Model:
    return graphs.build(CURVED, **weights(w1=(16, 3, 3, 3), b1=(16,), w2=(6, 16, 3, 3), b2=(6,)))


def floats() -> ir.Model:
    return graphs.build(FLOATS, **weights(w1=(16, 3, 3, 3), b1=(16,), w2=(6, 16, 3, 3), b2=(6,)))


def attended() -> ir.Model:
    """64 tokens that attend to all others about equally: each weight is a few steps of 1/256."""
    found: dict[str, NDArray[Any]] = dict(weights(w1=(8, 3, 3, 3), b1=(8,)))
    found["w1"] = found["w1"] * np.float32(0.3)
    return graphs.build(ATTENDED, **found, flat=np.array([0, 8, 64]))


RELU, SUM = "/stages/stages.1/Relu_output_0", "/stages/stages.0/bn2/BatchNormalization_output_0"
PLANTED: Mapping[str, Planted] = {
    "a scaled channel": Planted(kind="channel", where="Conv_h2", make=scaled_channel),
    "a scaled channel, one scale for the weight": Planted(
        kind="channel", where="Conv_h2", edits=(per_tensor("w2"),), make=lambda: scaled_output()
    ),
    "a threshold that saturates": Planted(kind="threshold", where="r2", edits=(number("r2_scale", times(1 / 8)),)),
    "a threshold that is too wide": Planted(kind="threshold", where="r1", edits=(number("r1_scale", times(16)),)),
    "a threshold of the input": Planted(kind="threshold", where="x", edits=(number("x_scale", times(1 / 8)),)),
    "a threshold of the output": Planted(kind="threshold", where="y_float", edits=(number("y_scale", times(16)),)),
    "boxes and scores in one Concat": Planted(kind="concat", where="Concat_y", make=detector),
    "branches of two ranges in one Concat": Planted(kind="concat", where="Concat_k", make=branches),
    "a truncated zero point": Planted(kind="zero-point", where="h3", edits=(number("h3_zero_point", times(0)),)),
    "half a zero point": Planted(kind="zero-point", where="x", edits=(number("x_zero_point", times(0.25)),)),
    "a quantized Softmax": Planted(kind="softmax", where="Softmax_p", make=attended),
    "a tail that is cut off": Planted(
        kind="negative-tail", where="r1", make=curved, edits=(number("r1_zero_point", times(0)),)
    ),
    "a sign for a small tail": Planted(
        kind="negative-tail", where="r1", make=curved, plan=grid("r1", bits=4, signed=True, zero_point=0)
    ),
    "a channel of a weight with another scale": Planted(
        kind="weight-scale", where="w3", edits=(number("w3_scale", one_channel(5, 6)),)
    ),
    "a weight with another scale": Planted(kind="weight-scale", where="w2", edits=(number("w2_scale", times(1.6)),)),
    "a weight that saturates": Planted(kind="weight-threshold", where="w2", edits=(other_steps("w2", 1 / 3),)),
    "a weight on a grid that is too wide": Planted(kind="weight-threshold", where="w1", edits=(other_steps("w1", 20),)),
    "an int32 bias off its grid": Planted(kind="bias", where="b2", target="qnn", edits=(number("b2_scale", times(4)),)),
    "Quantize and Dequantize that differ": Planted(kind="pair", where="r2", edits=(another_scale_behind("r2", 1.5),)),
    "an activation worth 16 bits": Planted(kind="bits", where="r1", plan=grid("r1", bits=4)),
    "a grid between kernels in float": Planted(
        kind="float-kernel", where="t", make=floats, plan=grid("t", bits=4, threshold=np.float64(1.0))
    ),
    "digits: a threshold that saturates": Planted(
        kind="threshold", where=RELU, make=digits, edits=(number(f"{RELU}_scale", times(1 / 16)),)
    ),
    "digits: a truncated zero point": Planted(
        kind="zero-point", where=SUM, make=digits, edits=(number(f"{SUM}_zero_point", times(0)),)
    ),
    "digits: a weight with another scale": Planted(
        kind="weight-scale",
        where="stages.2.conv1.weight",
        make=digits,
        edits=(number("stages.2.conv1.weight_scale", one_channel(5, 8)),),
    ),
}


def scaled_output() -> ir.Model:
    """One channel of w2 is 40 times as large, and what reads it takes that back."""
    model = chain()
    w2, b2, w3 = (model.graph.initializers[name].const_value.numpy().copy() for name in ("w2", "b2", "w3"))
    w2[3], b2[3], w3[:, 3] = w2[3] * 40, b2[3] * 40, w3[:, 3] / 40
    for name, array in (("w2", w2), ("b2", b2), ("w3", w3)):
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    return model
