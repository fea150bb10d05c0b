"""A file of `onnxdfq compress --target espdl` becomes an .espdl file: ESP-PPQ compiles it with the scales of that file.

    python samples/espdl/run.py model.w8a8.onnx model.espdl --chip esp32p4

ESP-PPQ (pip install esp-ppq, in an environment of its own: it wants an older onnx than onnxdfq) reads float models and
decides every scale anew. Here it is given the float network of the rounded weights, and then, tensor by tensor, the
scales that stand in the file; what it would have decided is thrown away.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

CALIBRATION = 8  # batches, the fewest that ESP-PPQ takes
Scales = dict[str, float]


def unquantized(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Scales]:
    """The float network of the rounded weights, and by value name the scale of each tensor, biases left out."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    source = {node.output[0]: node for node in model.graph.node}
    scales: Scales = {}
    renamed: dict[str, str] = {}
    kept, constants = [], {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in arrays:
            integers, scale = arrays[node.input[0]], arrays[node.input[1]]
            constants[node.output[0]] = (integers * scale).astype(np.float32)
            if integers.dtype != np.int32:
                scales[node.output[0]] = float(scale.reshape(-1)[0])
        elif node.op_type == "DequantizeLinear":
            before = source[node.input[0]].input[0]
            name = renamed[node.output[0]] = renamed.get(before, before)
            scales[name] = float(arrays[node.input[1]])
        elif node.op_type != "QuantizeLinear":
            kept.append(node)
    outputs = {value.name: renamed[value.name] for value in model.graph.output if value.name in renamed}
    back = {inner: name for name, inner in outputs.items()}  # outputs keep their names
    for node in kept:
        for names in (node.input, node.output):
            names[:] = [back.get(renamed.get(name, name), renamed.get(name, name)) for name in names]
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.node[:], found.graph.initializer[:], found.graph.value_info[:]
    found.graph.node.extend(kept)
    read = {name for node in kept for name in node.input}
    floats = {name: array for name, array in arrays.items() if name in read} | constants
    found.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in floats.items())
    found.opset_import[0].version, found.ir_version = min(found.opset_import[0].version, 18), 8
    return found, {back.get(name, name): scale for name, scale in scales.items()}


def compiled(source: Path, output: Path, *, chip: str) -> tuple[Any, Any]:
    """Writes the .espdl file; ESP-PPQ's graph of it, and its executor."""
    import torch
    from esp_ppq.api import espdl_quantize_onnx, get_target_platform
    from esp_ppq.api.interface import export_ppq_graph
    from esp_ppq.executor import TorchExecutor
    from esp_ppq.IR import QuantableOperation

    model, scales = unquantized(onnx.load(source))
    bits = max(
        16 if tensor.data_type == onnx.TensorProto.INT16 else 8 for tensor in onnx.load(source).graph.initializer
    )
    kind = {8: "w8a8", 16: "w8a16"}[bits]
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        onnx.save(model, path)
        graph = espdl_quantize_onnx(
            str(path),
            str(output),
            [torch.rand(shape)] * CALIBRATION,
            CALIBRATION,
            shape,
            target=chip,
            quant_type=kind,
            error_report=False,
            skip_export=True,
        )
    unknown = []
    for operation in graph.operations.values():
        if not isinstance(operation, QuantableOperation):
            continue
        for config, variable in operation.config_with_variable:
            name = variable.name
            if config.dominated_by is not config or config.scale is None or config.num_of_bits > 16:
                continue
            if name not in scales:
                unknown.append(name)
                continue
            config._scale = torch.full_like(config.scale, scales[name])
    export_ppq_graph(graph, get_target_platform(chip, kind), str(output))
    print("without a scale in the file:", unknown)
    return graph, TorchExecutor(graph, device="cpu")


def largest_difference(source: Path, executor: Any, *, count: int = 16) -> float:
    """Between ESP-PPQ and ONNX Runtime on the file, in steps of the output, over random inputs."""
    import torch

    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    random = np.random.default_rng(0)
    model = onnx.load(source)
    step = unquantized(model)[1][model.graph.output[0].name]
    worst = 0.0
    for _ in range(count):
        samples = random.normal(size=entry.shape).astype(np.float32)
        expected = session.run(None, {entry.name: samples})[0]
        found = executor(torch.from_numpy(samples))[0].detach().numpy()
        worst = max(worst, float(np.abs(found - expected).max()) / step)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--chip", default="esp32p4", choices=["esp32p4", "esp32s3", "c"])
    arguments = parser.parse_args()
    _, executor = compiled(arguments.source, arguments.output, chip=arguments.chip)
    worst = largest_difference(arguments.source, executor)
    print(f"{arguments.output}: ESP-PPQ and ONNX Runtime differ by at most {worst:.2f} steps of the output")


if __name__ == "__main__":
    main()
