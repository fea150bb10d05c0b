"""Sparse tensors written out: nothing behind the parser knows them."""

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnxdfq.errors import ModelFileError
from onnxdfq.model_file.untrusted import messages_of

_MOST = 2**28  # elements of one tensor


def write_out_sparse(path: Path, proto: onnx.ModelProto) -> None:
    """Sparse initializers become initializers, Constants of a sparse tensor those of a dense one, in place.

    Raises:
        ModelFileError: A sparse tensor is damaged, or too large to be written out; names it.
    """
    for graph in messages_of(proto, onnx.GraphProto):
        graph.initializer.extend(_dense(path, sparse) for sparse in graph.sparse_initializer)
        del graph.sparse_initializer[:]
    for node in messages_of(proto, onnx.NodeProto):
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "sparse_value" and attribute.HasField("sparse_tensor"):
                dense = _dense(path, attribute.sparse_tensor)
                attribute.Clear()
                attribute.CopyFrom(onnx.helper.make_attribute("value", dense))


def _dense(path: Path, sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    name, sizes = sparse.values.name, list(sparse.dims)
    what = f"{path}: the sparse tensor {name!r}"
    if min(sizes, default=0) < 0 or math.prod(sizes) > _MOST:
        shape = "×".join(map(str, sizes))
        raise ModelFileError(f"{what} is {shape}, and up to {_MOST:,} elements are written out.")
    try:
        values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        flat = np.zeros(math.prod(sizes), values.dtype)
        if places.ndim == 2:
            places = np.ravel_multi_index(tuple(places.T), sizes)
        flat[places] = values.reshape(-1)
    except (ValueError, IndexError, TypeError) as error:
        raise ModelFileError(f"{what} is damaged ({error}); export it again.") from error
    return numpy_helper.from_array(flat.reshape(sizes), name)
