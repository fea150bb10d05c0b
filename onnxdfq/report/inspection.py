"""The contents of a model file, as far as they matter for compression."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxdfq.model_file import blaming, inputs, load_model, read_model
from onnxdfq.model_file.untrusted import bytes_of
from onnxdfq.report.quantization import quantization
from passes.canonical.canonicalize import Canonicalize
from passes.dfmpc.layer_pairs import find_layer_pairs
from passes.graph.batch_norm import read_batch_norms
from passes.graph.editing import name_of
from passes.graph.folding import folded_batch_norms
from passes.write.provenance import read_provenance


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The contents of one file, bodies of If and Loop included, in plain values that turn into JSON directly.

    inputs, outputs: type and shape in words, by name.
    parameters: number of elements of all initializers and constants.
    operators: number of nodes by operator, most frequent first.
    batch_norms: number of BatchNormalization nodes. folded_batch_norms: where the file shows that one was folded at
        export; empty does not mean that none was.
    without_gradient: operators that the engine has no function for: `compress` runs them in ONNX Runtime and leaves
        them float.
    quantized: what `quantization` finds: form, bits, scales and zero points; empty for a float model.
    provenance: what `compress` or `export` wrote into the file.
    """

    file: str
    bytes: int
    opset: int
    producer: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    parameters: int
    operators: dict[str, int]
    batch_norms: int
    folded_batch_norms: list[str]
    without_gradient: list[str]
    quantized: dict[str, int | bool | str | list[int] | list[str]]
    provenance: dict[str, str]


def inspect(path: Path | str) -> Inspection:
    """Reads the model at `path`, float or quantized.

    Raises:
        ModelFileError: The file cannot be read or is damaged.
        UnsupportedOperator: It holds an operator that ONNX itself lacks.
    """
    from onnxdfq.engine import SUPPORTED_OPERATORS  # torch takes its time to import

    path = Path(path)
    model = read_model(path)
    with blaming(path):
        return _inspected(path, model, SUPPORTED_OPERATORS)


def _inspected(path: Path, model: ir.Model, supported: Collection[str]) -> Inspection:
    operators = Counter(node.op_type for node in model.graph.all_nodes())
    without_gradient = sorted(
        {
            f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            for node in model.graph
            if node.domain not in ("", "ai.onnx") or node.op_type not in supported
        }
    )
    return Inspection(
        file=str(path),
        bytes=bytes_of(path),
        opset=model.opset_imports.get("", 0),
        producer=model.producer_name or "",
        inputs={spec.name: _type(spec.dtype, spec.shape) for spec in inputs(model)},
        outputs={name_of(value): _type(value.dtype, value.shape) for value in model.graph.outputs},
        parameters=sum(int(tensor.size) for tensor in _weights(model)),
        operators=dict(operators.most_common()),
        batch_norms=len(read_batch_norms(model)),
        folded_batch_norms=list(folded_batch_norms(model)),
        without_gradient=without_gradient,
        quantized=quantization(model),
        provenance=read_provenance(model),
    )


def layer_pairs(path: Path) -> dict[str, Any]:
    """The layer pairs of DF-MPC (arXiv 2307.00498): layers of low bits, and those that compensate each.

    Returns:
        Plain values: "low" by layer name, with the names of its compensating layers and whether they can compensate;
        "high" by layer name, with the reason why it is not low.

    Raises:
        InputError: The model cannot be read (`load_model`).
    """
    model = load_model(path)
    Canonicalize()(model)
    pairs = find_layer_pairs(model, "first")
    return {
        "low": {
            layer.node.name: {
                "paid_by": [consumer.node.name for consumer in layer.consumers],
                "legal": layer in pairs.legal,
                "why_not": pairs.refused.get(name_of(layer.node)),
            }
            for layer in pairs.low
        },
        "high": {layer.node.name: pairs.refused.get(name_of(layer.node)) for layer in pairs.high},
    }


def _weights(model: ir.Model) -> list[ir.TensorProtocol]:
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    constants = [
        attribute.as_tensor()
        for node in model.graph.all_nodes()
        if node.op_type == "Constant"
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR
    ]
    return [tensor for tensor in [*tensors, *constants] if tensor is not None]


def _type(dtype: ir.DataType | None, shape: object) -> str:
    sides = (
        [str(side) if isinstance(side, int) and side >= 0 else "N" for side in shape]  # PaddlePaddle writes -1
        if isinstance(shape, tuple | ir.Shape)
        else ["?"]
    )
    return f"{dtype.name.lower() if dtype is not None else '?'} {'×'.join(sides)}"
