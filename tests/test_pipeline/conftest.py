"""One compression, held to everything that is promised of all files."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch

import onnxdfq
from onnxdfq.engine import TorchGraph
from onnxdfq.evaluation.saturation import EXACT
from onnxdfq.images.feeding import Feeding
from onnxdfq.model_file import batch_of
from onnxdfq.targets import load_target

Level = onnxruntime.GraphOptimizationLevel


def asks_for_exact_kernels(target: str) -> bool:
    """Whether files for this target may saturate ONNX Runtime's own kernels, whose neighbours are not OpenVINO's; files
    on int8 QLinear operators never do."""
    found, ort = load_target(target), load_target("ort")
    return (found.pair_limit, found.pair_order) != (ort.pair_limit, ort.pair_order) and found.format == "qdq"


def run(
    path: Path,
    feeds: dict[str, np.ndarray],
    level: Level,
    optimised: Path | None = None,
    *,
    exact: bool = False,
    quiet: bool = True,
) -> list[np.ndarray]:
    """exact: by kernels that add in 32 bits, for files whose target does not keep the others from saturating. quiet:
    without ONNX Runtime's warnings."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4 if quiet else 2
    if exact:
        options.add_session_config_entry(*EXACT)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    found: list[np.ndarray] = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"]).run(None, feeds)
    return found


def compressed(
    source: Path, folder: Path, *, steps: float = 1.01, sqnr: float = 15.0, **settings: object
) -> Counter[str]:
    """Compress, hold the file to everything that is promised of all files; ONNX Runtime's operators, optimised.

    steps: how far engine and runtime may differ, in steps of the output. sqnr: against the float model, in dB.
    """
    output = folder / "q.onnx"
    result = onnxdfq.compress(
        source, output=output, force=True, **{"method": "noise", "images": 8, "tuning": "none"} | settings
    )
    onnx.checker.check_model(output, full_check=True)
    onnx.shape_inference.infer_shapes(onnx.load(output), strict_mode=True, check_type=True)
    model = ir.load(output)
    before = onnx.load(source).graph
    initializers = {tensor.name for tensor in before.initializer}
    assert [v.name for v in model.graph.inputs] == [v.name for v in before.input if v.name not in initializers]
    assert [v.name for v in model.graph.outputs] == [v.name for v in before.output]
    feeds = Feeding(model).arrays(result.images.samples[: batch_of(model) or len(result.images)])
    plain = run(output, feeds, Level.ORT_DISABLE_ALL)
    exact = asks_for_exact_kernels(str(settings.get("target", "ort")))
    optimised = run(output, feeds, Level.ORT_ENABLE_ALL, folder / "optimised.onnx", exact=exact)
    graph = TorchGraph(model)
    engine = dict(
        zip(graph.output_names, graph(*(torch.tensor(feeds[name]) for name in graph.input_names)), strict=True)
    )
    for value, unoptimised, fast in zip(model.graph.outputs, plain, optimised, strict=True):
        producer = value.producer()
        if producer is None or producer.op_type != "DequantizeLinear":
            continue
        assert producer.inputs[1] is not None and producer.inputs[1].const_value is not None
        step = float(producer.inputs[1].const_value.numpy())
        exact = engine[value.name or ""].detach().numpy()
        assert np.abs(exact - unoptimised).max() <= steps * step
        assert np.abs(fast - unoptimised).max() <= steps * step
    found = result.metrics["sqnr_db_images"]
    assert found is not None and found > sqnr
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)
