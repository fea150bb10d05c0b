"""Inputs and outputs without a shape: common in files, and right by ONNX; its checker refuses them all the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import onnx


@contextmanager
def all_shaped(proto: onnx.ModelProto) -> Iterator[None]:
    """Gives each of them a shape for the time of the block, without a word of its sizes."""
    unshaped = [
        value.type.tensor_type
        for value in (*proto.graph.input, *proto.graph.output)
        if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape")
    ]
    for tensor_type in unshaped:
        tensor_type.shape.SetInParent()
    try:
        yield
    finally:
        for tensor_type in unshaped:
            tensor_type.ClearField("shape")
