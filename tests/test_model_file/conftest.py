"""Small models, and what ONNX Runtime makes of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxdfq.model_file import (
    load_model,
)

IR_VERSION = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 17: 8, 21: 10, 25: 13}


def build(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, NDArray[Any]],
    *,
    shape: Sequence[int | str | None] | None = ("batch", 3, 8, 8),
    output: Sequence[int | str | None] | None = None,
    opset: int = 17,
    more_inputs: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:
    """A model from `x` to `y`."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape), *more_inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION.get(opset, 8))


def weight(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


def batch_norm(name: str, x: str, y: str, channels: int, **attributes: Any) -> tuple[onnx.NodeProto, dict[str, Any]]:
    names = [f"{name}.{part}" for part in ("scale", "bias", "mean", "var")]
    values = [weight(channels, seed=seed) for seed in range(1, 5)]
    values[3] = np.abs(values[3]) + 0.5
    node = helper.make_node("BatchNormalization", [x, *names], [y], name=name, **attributes)
    return node, dict(zip(names, values, strict=True))


def conv_net(**changes: Any) -> onnx.ModelProto:
    """Conv, BatchNormalization, Relu, mean, Gemm: y (batch, 4)."""
    norm, parameters = batch_norm("bn", "conv_y", "bn_y", 5)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["conv_y"], name="conv", pads=[1, 1, 1, 1]),
        norm,
        helper.make_node("Relu", ["bn_y"], ["relu_y"], name="relu"),
        helper.make_node("GlobalAveragePool", ["relu_y"], ["pool_y"], name="pool"),
        helper.make_node("Flatten", ["pool_y"], ["flat_y"], name="flat"),
        helper.make_node("Gemm", ["flat_y", "g"], ["y"], name="gemm"),
    ]
    return build(nodes, {"w": weight(5, 3, 3, 3), "g": weight(5, 4), **parameters}, output=["batch", 4], **changes)


def saved(proto: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def run(model: onnx.ModelProto | ir.Model | Path, x: NDArray[np.float32], **more: NDArray[Any]) -> NDArray[np.float32]:
    source: Any = model
    if isinstance(model, ir.Model):
        source = ir.to_proto(model).SerializeToString()
    elif isinstance(model, onnx.ModelProto):
        source = model.SerializeToString()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: x, **more})[0]
    return result


def noise(batch: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(batch).standard_normal((batch, *shape)).astype(np.float32)


def assert_same_function(path: Path, model: ir.Model, *shape: int) -> None:
    """Batch 1 and 3 of the loaded model against the file; rows one by one, for a file whose batch is fixed at 1."""
    for batch in (1, 3):
        x = noise(batch, *shape)
        expected = np.concatenate([run(path, row[np.newaxis]) for row in x])
        np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-5)


def old_net(opset: int) -> onnx.ModelProto:
    """What exporters of their time wrote, with everything that changed between opset 7 and 13."""
    norm, parameters = batch_norm("bn", "up", "bn_y", 3, **({"spatial": 1} if opset < 9 else {}))
    weights = {"k": weight(4, 3, 3, 3), **parameters}
    float_input = [helper.make_node("Relu", ["clip"], ["relu"])]
    if opset < 9:
        up = [helper.make_node("Upsample", ["x"], ["up"], mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])]
    elif opset < 10:
        up = [helper.make_node("Upsample", ["x", "scales"], ["up"], mode="nearest")]
        weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    elif opset < 11:
        up = [helper.make_node("Resize", ["x", "scales"], ["up"], mode="nearest")]
        weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    else:
        roi = "roi" if opset < 13 else ""
        weights |= {"roi": np.zeros(0, np.float32)} if roi else {}
        up = [helper.make_node("Resize", ["x", roi, "scales"], ["up"], coordinate_transformation_mode="asymmetric",
                               nearest_mode="floor")]  # fmt: skip
        weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    if opset < 11:
        clip = [helper.make_node("Clip", ["conv"], ["clip"], min=-1.0, max=1.0)]
    else:
        clip = [helper.make_node("Clip", ["conv", "low", "high"], ["clip"])]
        weights |= {"low": np.float32(-1).reshape(()), "high": np.float32(1).reshape(())}
    if opset < 11:
        pad = [helper.make_node("Pad", ["relu"], ["padded"], mode="constant", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5)]
    else:
        pad = [helper.make_node("Pad", ["relu", "pads", "half"], ["padded"])]
        weights |= {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "half": np.float32(0.5).reshape(())}
    if opset < 10:
        cut = [helper.make_node("Slice", ["padded"], ["cut"], axes=[2, 3], starts=[0, 0], ends=[9, 9])]
    else:
        cut = [helper.make_node("Slice", ["padded", "starts", "ends", "axes"], ["cut"])]
        weights |= {"starts": np.array([0, 0]), "ends": np.array([9, 9]), "axes": np.array([2, 3])}
    drop = [helper.make_node("Dropout", ["cut"], ["drop", "mask"] if opset < 12 else ["drop"])]
    if opset < 13:
        tail = [
            helper.make_node("ReduceSum", ["drop"], ["sum"], axes=[2], keepdims=0),
            helper.make_node("Unsqueeze", ["sum"], ["wide"], axes=[2]),
            helper.make_node("Squeeze", ["wide"], ["narrow"], axes=[2]),
        ]
    else:
        weights["two"] = np.array([2])
        tail = [
            helper.make_node("ReduceSum", ["drop", "two"], ["sum"], keepdims=0),
            helper.make_node("Unsqueeze", ["sum", "two"], ["wide"]),
            helper.make_node("Squeeze", ["wide", "two"], ["narrow"]),
        ]
    tail += [
        helper.make_node("Flatten", ["narrow"], ["flat"]),
        helper.make_node("Softmax", ["flat"], ["y"], axis=1),
    ]
    nodes = [
        *up,
        norm,
        helper.make_node("Conv", ["bn_y", "k"], ["conv"]),
        *clip,
        *float_input,
        *pad,
        *cut,
        *drop,
        *tail,
    ]
    model = build(nodes, weights, opset=opset, shape=("N", 3, 8, 8), output=("N", None))
    if opset < 9:  # IR 3 wants every initializer among the inputs
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


def save_external(proto: onnx.ModelProto, folder: Path, location: str = "weights.bin") -> Path:
    path = folder / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location=location, size_threshold=0, convert_attribute=True)
    return path


def move_location(path: Path, location: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())


def with_weight(proto: onnx.ModelProto, name: str, array: NDArray[Any]) -> onnx.ModelProto:
    kept = [tensor for tensor in proto.graph.initializer if tensor.name != name]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([*kept, numpy_helper.from_array(array, name)])
    return proto


def small(tmp_path: Path) -> ir.Model:
    return load_model(saved(conv_net(), tmp_path, "source.onnx"))
