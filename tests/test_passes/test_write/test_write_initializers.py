"""Constants get other numbers by name, and nothing else changes."""

import numpy as np
import onnx_ir as ir
import pytest

from passes.write.write_initializers import WriteInitializers, named_constants

from ...graphs import build

TEXT = """(float[N,2] x) => (float[N,2] y) {
    t = Identity (s)  k = Constant <value = float[2] {5.0, 6.0}> ()
    a = Add (x, s)  b = Mul (a, t)  y = Sub (b, k)
}"""


def model() -> ir.Model:
    return build(TEXT, s=np.array([1, 2], "f4"), unused=np.array([7], np.int64))


def test_constants_are_found_by_name() -> None:
    found = named_constants(model())
    assert {name: array.tolist() for name, array in found.items()} == {"s": [1, 2], "t": [1, 2], "k": [5, 6]}


def test_an_initializer_keeps_its_place() -> None:
    graph = model()
    before = ir.to_proto(graph)
    WriteInitializers({"s": np.array([3, 4], "f4")})(graph)
    after = ir.to_proto(graph)
    assert list(after.graph.node) == list(before.graph.node)
    assert [one.name for one in after.graph.initializer] == [one.name for one in before.graph.initializer]
    assert named_constants(graph)["s"].tolist() == [3, 4] and named_constants(graph)["t"].tolist() == [3, 4]


def test_what_was_shared_has_numbers_of_its_own() -> None:
    graph = model()
    WriteInitializers({"t": np.array([3, 4], "f4"), "k": np.array([0, 1], "f4")})(graph)
    assert [node.op_type for node in graph.graph] == ["Add", "Mul", "Sub"]
    found = {name: array.tolist() for name, array in named_constants(graph).items()}
    assert found == {"s": [1, 2], "t": [3, 4], "k": [0, 1]}


@pytest.mark.parametrize("arrays", [{"z": np.zeros(2, "f4")}, {"s": np.zeros(3, "f4")}])
def test_other_names_and_shapes_are_refused(arrays: dict[str, np.ndarray]) -> None:
    with pytest.raises(ir.passes.PreconditionError, match="no float32 constant"):
        WriteInitializers(arrays)(model())
