"""Where two versions of a network are compared: at float outputs, and in front of integer ones."""

import onnx_ir as ir

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_MOVES = {"DequantizeLinear", "QuantizeLinear", "Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast"}
_SCORES = {"Softmax", "LogSoftmax"}
# What the last operator of a classifier is, where it has no Softmax; a box, an angle or an embedding ends otherwise.
_LOGITS = {"Gemm", "MatMul", "Add", "Conv", "GlobalAveragePool", "ReduceMean", "AveragePool"}


def is_float(value: ir.Value) -> bool:
    """Whether a value is a tensor of floating-point numbers; a sequence of tensors is none."""
    return value.dtype in FLOATS and (value.type is None or isinstance(value.type, ir.TensorType))


def compared_values(graph: ir.Graph) -> list[ir.Value]:
    """Values in which rounding shows: each float output itself; of any other, the nearest float value before it.

    Of several that are as near as one another (what ArgMax reads, and what a threshold is compared with), the one of
    the highest rank. Types have to be inferred. Each value once, in the order of the outputs.
    """
    found = [value if is_float(value) else _float_before(value) for value in graph.outputs]
    return list(dict.fromkeys(value for value in found if value is not None))


def answer_output(graph: ir.Graph) -> int | None:
    """The place of the output that says which class it is, None where none does.

    It holds classes as integers (N, ...), or a score for each of two classes or more, (N, K) with any sizes of 1
    behind: the first behind a Softmax, or the only output, where a layer computes it.
    """
    for place, value in enumerate(graph.outputs):
        producer = value.producer()
        if value.dtype in (ir.DataType.INT64, ir.DataType.INT32) and producer is not None:
            return place if value.shape is not None and len(value.shape) > 0 else None
    scores = [(place, _origin(value)) for place, value in enumerate(graph.outputs) if _has_scores(value)]
    for place, op_type in scores:
        if op_type in _SCORES:
            return place
    return scores[0][0] if len(graph.outputs) == len(scores) == 1 and scores[0][1] in _LOGITS else None


def _float_before(value: ir.Value) -> ir.Value | None:
    front, seen = [value], {value}
    while front:
        nearest = [
            source
            for found in front
            if (node := found.producer()) is not None
            for source in node.inputs
            if source is not None and source not in seen and not source.is_initializer()
        ]
        seen.update(nearest)
        floats = [source for source in nearest if is_float(source) and source.producer() is not None]
        if floats:
            return max(floats, key=lambda source: len(source.shape or ()))
        front = list(dict.fromkeys(nearest))
    return None


def _has_scores(value: ir.Value) -> bool:
    if value.shape is None or value.dtype not in FLOATS:
        return False
    sizes = list(value.shape)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    return len(sizes) == 2 and sizes[1] != 1


def _origin(value: ir.Value) -> str:
    node = value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return "" if node is None else node.op_type
