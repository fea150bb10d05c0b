"""Valid models that cannot be compressed: quantized, empty, and those whose numbers no network computes from."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxdfq.errors import AlreadyQuantized, ModelFileError, ShapeError, UnsupportedOperator
from onnxdfq.model_file.through_proto import infer_shapes
from passes.graph.compared import FLOATS
from passes.graph.editing import as_float64, constant_value, is_op, name_of
from passes.graph.operators import LINEAR, TRAITS

_QUANTIZED_PREFIXES = ("QLinear", "DynamicQuantize", "QGemm", "QAttention", "QMoE", "QOrdered")
_QUANTIZED = {
    "QuantizeLinear",
    "DequantizeLinear",
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "MatMulBnb4",
    "FakeQuant",
}

# Where an infinity is ordinary: bounds, padding and masks. Anywhere else it is a broken weight.
_TAKES_INFINITY = {"Clip", "Max", "Min", "Pad", "Where", "Expand", "ConstantOfShape", "ScatterND", "ScatterElements"}
_FACTORS = {"alpha", "beta", "bias", "epsilon", "gamma", "lambd"}  # attributes that numbers are computed with
MOST_WEIGHT = 1e30  # times an input of a few, and summed, it is still a float32
_CHUNK = 1 << 22
_FLAGS = frozenset(
    {
        "align_corners",
        "allowzero",
        "ceil_mode",
        "center_point_box",
        "count_include_pad",
        "exclusive",
        "fmod",
        "keepdims",
        "largest",
        "noop_with_empty_axes",
        "reverse",
        "select_last_index",
        "sorted",
        "training_mode",
        "transA",
        "transB",
    }
)


def refuse_quantized(model: ir.Model, path: Path) -> None:
    """Refuses a model that holds quantized operators.

    Raises:
        AlreadyQuantized: Names the first such node.
    """
    found = [
        node for node in _all_nodes(model) if node.op_type in _QUANTIZED or node.op_type.startswith(_QUANTIZED_PREFIXES)
    ]
    if found:
        node = found[0]
        raise AlreadyQuantized(
            f"{path} is already quantized: it holds {len(found)} such nodes, the first {node.op_type} "
            f"{node.name or node.outputs[0].name!r}; give the float model that it was made from."
        )


def refuse_text(model: ir.Model, path: Path) -> None:
    """Refuses a model that is fed text, or sequences: what calibrates it are numbers.

    Raises:
        UnsupportedOperator: Names the first such input.
    """
    for value in model.graph.inputs:
        if value.dtype == ir.DataType.STRING or not (value.type is None or isinstance(value.type, ir.TensorType)):
            kind = "text" if value.dtype == ir.DataType.STRING else "a sequence of tensors"
            raise UnsupportedOperator(
                f"{path}: the input {value.name!r} takes {kind}, and only inputs of numbers are calibrated; cut the "
                "model behind what reads it."
            )


def refuse_not_finite(model: ir.Model, path: Path) -> None:
    """Refuses a model with a damaged tensor, NaN, infinity where no operator takes it as a bound or mask, or a weight
    whose sums overflow.

    Raises:
        ModelFileError: Names the first such tensor, or attribute of a node.
    """
    for node in model.graph.all_nodes():
        for name in _FACTORS & node.attributes.keys():
            attribute = node.attributes[name]
            if attribute.type == ir.AttributeType.FLOAT and not np.isfinite(attribute.as_float()):
                raise ModelFileError(
                    f"{path}: {name} of {node.op_type} {node.name or name_of(node.outputs[0])!r} is "
                    f"{attribute.as_float():g}, so the model cannot work; export it again from good weights."
                )
    for value in (value for graph in model.graphs() for value in graph.initializers.values()):
        tensor = value.const_value
        if tensor is None:
            continue
        try:
            array = tensor.numpy()
        except (ValueError, TypeError, OSError) as error:
            raise ModelFileError(f"{path}: tensor {value.name!r} is damaged ({error}); export it again.") from error
        if tensor.dtype not in FLOATS:
            continue
        has_nan, has_plus, has_minus = _not_finite(array)
        users = {use.node.op_type for use in value.uses()}
        # An attention mask is added, has rows and columns, and reaches down only; a bias has one axis.
        mask = {"Add"} if has_minus and not has_plus and array.ndim > 1 else set()
        if has_nan or ((has_plus or has_minus) and not users <= _TAKES_INFINITY | mask):
            what = "NaN" if has_nan else "infinity"
            raise ModelFileError(
                f"{path}: tensor {value.name!r} holds {what}, so the model cannot work; "
                "export it again from good weights."
            )
        if array.ndim > 1 and users & LINEAR and (largest := _largest(array)) > MOST_WEIGHT:
            raise ModelFileError(
                f"{path}: tensor {value.name!r} holds {largest:.3g}, with which a layer's sums are infinite; export it "
                "again from good weights."
            )


def refuse_wild_flags(model: ir.Model, path: Path) -> None:
    """Refuses a model with a flag that is neither 0 nor 1: runtimes read others as either, each in its own way.

    Raises:
        ModelFileError: Names the first such node.
    """
    for node in model.graph.all_nodes():
        for name in _FLAGS.intersection(node.attributes) if node.domain == "" else ():
            attribute = node.attributes[name]
            if attribute.type == ir.AttributeType.INT and attribute.value not in (0, 1):
                raise ModelFileError(
                    f"{path}: {node.op_type} {node.name or name_of(node.outputs[0])!r} has {name} {attribute.value}, "
                    "which is 0 or 1; export the model again."
                )


def refuse_empty(model: ir.Model, path: Path) -> None:
    """Refuses a model in which a layer computes on no numbers: nothing can be measured there.

    Raises:
        ShapeError: Names the first such node.
    """
    given = {dim.value for one in model.graph.inputs for dim in one.shape or () if isinstance(dim, ir.SymbolicDim)}
    read = [value for node in model.graph for value in _computed_on(node)]
    if all(_holds_numbers(value, given - {None}) for value in read):  # what inference has told before
        return
    single = model.clone()
    for value in single.graph.inputs:  # no number of times an open size is nothing to inference
        value.shape = None if value.shape is None else ir.Shape([d if isinstance(d, int) else 1 for d in value.shape])
    for node in single.graph:
        for value in node.outputs:
            value.shape = None
    infer_shapes(single, strict=False)
    for node in single.graph:
        for data in _computed_on(node):
            if data.shape is not None and 0 in list(data.shape):
                sizes = "×".join(map(str, data.shape))
                raise ShapeError(
                    f"{path}: {node.op_type} {name_of(node)!r} computes on {name_of(data)!r}, which holds no numbers "
                    f"({sizes}); export the model again with sizes above 0."
                )


def _computed_on(node: ir.Node) -> Iterator[ir.Value]:
    """What a layer reads, where the node is one."""
    traits = TRAITS.get(node.op_type)
    if traits is not None and traits.kind in ("linear", "normalization") and node.inputs and node.inputs[0] is not None:
        yield node.inputs[0]


def _holds_numbers(value: ir.Value, given: Collection[str | None]) -> bool:
    """Whether its shape tells so. given: names of the sizes that inputs leave open."""
    return value.shape is not None and all(
        dim > 0 if isinstance(dim, int) else dim.value in given for dim in value.shape
    )


def refuse_broken_norms(model: ir.Model, path: Path) -> None:
    """Refuses a model with a BatchNormalization from whose numbers no network can compute.

    Raises:
        ModelFileError: Names the first such node and its tensor.
    """
    for node in model.graph.all_nodes():
        arrays = [constant_value(value) for value in node.inputs[1:5]]
        batch = node.attributes.get_int("training_mode", 0)
        if not is_op(node, "BatchNormalization") or batch or len(arrays) < 4 or any(array is None for array in arrays):
            continue
        gamma, beta, mean, var = (as_float64(array) for array in arrays if array is not None)
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        names = [name_of(value) for value in node.inputs[1:5]]
        what = _fault_of_norm(names, gamma, beta, mean, var, epsilon)
        if what is not None:
            raise ModelFileError(
                f"{path}: in BatchNormalization {node.name or name_of(node.outputs[0])!r} {what}, so the model cannot "
                "work; export it again from good weights."
            )


def _fault_of_norm(
    names: list[str],
    gamma: NDArray[np.float64],
    beta: NDArray[np.float64],
    mean: NDArray[np.float64],
    var: NDArray[np.float64],
    epsilon: float,
) -> str | None:
    """What is wrong with the numbers of a BatchNormalization; None where a network can compute from them."""
    if len({array.shape for array in (gamma, beta, mean, var)}) > 1 or gamma.ndim != 1:
        return f"the tensors {', '.join(map(repr, names))} are not four lists of one length"
    below = np.flatnonzero(~(var + epsilon > 0))
    if below.size:
        found = var[below[0]] + epsilon
        return f"the variance {names[3]!r} of channel {below[0]} plus epsilon is {found:g} and has to be above 0"
    scale = gamma / np.sqrt(var + epsilon)
    for name, array in ((names[0], scale), (names[2], mean * scale), (names[1], beta - mean * scale)):
        beyond = np.flatnonzero(np.abs(array) > np.finfo(np.float32).max)
        if beyond.size:
            return f"{name!r} comes to {array[beyond[0]]:.3g} in channel {beyond[0]}, which float32 does not hold"
    return None


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _chunks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Its numbers in parts, so that a lazily loaded weight is never copied whole."""
    flat = array.reshape(-1)
    yield from (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))


def _largest(array: NDArray[Any]) -> float:
    """The greatest magnitude."""
    return max((float(np.abs(part.astype(np.float64)).max()) for part in _chunks(array)), default=0.0)


def _not_finite(array: NDArray[Any]) -> tuple[bool, bool, bool]:
    """Whether the array holds NaN, +inf, -inf."""
    has_nan = has_plus = has_minus = False
    for part in _chunks(array):
        part = part.astype(np.float32) if part.dtype.itemsize < 4 else part
        if np.isfinite(part).all():
            continue
        has_nan |= bool(np.isnan(part).any())
        has_plus |= bool((part == np.inf).any())
        has_minus |= bool((part == -np.inf).any())
    return has_nan, has_plus, has_minus
