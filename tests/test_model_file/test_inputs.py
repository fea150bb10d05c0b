"""What a model wants as input, and sizes that the file leaves open."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxdfq.errors import (
    ShapeError,
)
from onnxdfq.model_file import (
    fillings,
    inputs,
    load_model,
    main_input,
    parse_input_shapes,
)

from ..slow import slow
from .conftest import assert_same_function, build, conv_net, noise, run, saved


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            ("batch", 3, "h", "w"),
            r"Input 'x' has unknown sizes: batch×3×h×w; give them with --input-shape x=1,3,224,224",
        ),
        (
            ("batch", 3, None, None),
            r"Input 'x' has unknown sizes: batch×3×\?×\?; give them with --input-shape x=1,3,224",
        ),
        ((1, 3, -1, 8), r"unknown sizes: .*--input-shape x=1,3,224,8"),
        ((1, 3, 0, 8), r"Input 'x' has size 0 on axis 2"),
        ((0, 3, 8, 8), r"Input 'x' has size 0 on axis 0"),
        (None, r"Input 'x' has no shape; give it with --input-shape x=1,3,224,224"),
    ],
)
def test_shapes_that_are_unknown_or_empty(tmp_path: Path, shape: Sequence[Any] | None, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        load_model(saved(conv_net(shape=shape), tmp_path))


@pytest.mark.parametrize(
    "shape", [("batch", 3, "h", "w"), (None, None, None, None), None, (1, 3, -1, 8), (1, 3, "h", 8)]
)
@pytest.mark.parametrize("given", ["x=1,3,8,8", slow("1,3,8,8"), slow("5,3,8,8")])
def test_given_shapes(tmp_path: Path, shape: Sequence[Any] | None, given: str) -> None:
    path = saved(conv_net(shape=shape), tmp_path)
    model = load_model(path, input_shape=parse_input_shapes([given]))
    assert main_input(model).shape == (None, 3, 8, 8)
    reference = saved(conv_net(), tmp_path, "reference.onnx")
    assert_same_function(reference, model, 3, 8, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("z=1,3,8,8", r"names the input 'z', which the model lacks; it has 'x'"),
        ("x=1,4,8,8", r"gives 4 for axis 1 of 'x', which the model fixes at 3"),
        ("3,8,8", r"has 3 sizes and the input has 4"),
        ("x=1,3,8,big", r"is not NAME=1,3,224,224 or 1,3,224,224"),
        ("x=1,3,8,0", r"holds a size below 1"),
    ],
)
def test_given_shapes_that_do_not_fit(tmp_path: Path, given: str, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        load_model(saved(conv_net(shape=("batch", 3, "h", "w")), tmp_path), input_shape=parse_input_shapes([given]))


def test_several_inputs(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["size"], ["float_size"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "float_size"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["y"]),
    ]
    more = [
        helper.make_tensor_value_info("size", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("shift", TensorProto.FLOAT, ["batch", 1]),
    ]
    path = saved(build(nodes, {}, shape=("batch", 3, 8, 8), more_inputs=more), tmp_path)
    # (batch, 1) broadcasts against the last two axes only at batch 1 or 8, so the batch is no batch here.
    model = load_model(path)
    assert main_input(model).name == "x"
    assert [(spec.name, spec.batch_axis, spec.image) for spec in inputs(model)] == [
        ("x", 0, "first"),
        ("size", None, None),
        ("shift", 0, None),
    ]
    found = fillings(model)
    by_name = {spec.name: found[spec.name].draw(spec, 4, 0) for spec in inputs(model)}
    np.testing.assert_array_equal(by_name["size"], np.ones((4, 1), np.int64))
    assert by_name["shift"].shape == (4, 1) and by_name["shift"].std() > 0


def test_a_batch_is_freed_beside_an_input_without_one(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Cast", ["size"], ["float_size"], to=TensorProto.FLOAT),
        helper.make_node("ReduceProd", ["float_size"], ["area"]),
        helper.make_node("Mul", ["flat", "area"], ["y"]),
    ]
    more = [helper.make_tensor_value_info("size", TensorProto.INT64, [2])]
    path = saved(build(nodes, {"target": np.array([1, -1])}, shape=(1, 3, 8, 8), more_inputs=more), tmp_path)
    model = load_model(path)
    assert [spec.shape for spec in inputs(model)] == [(None, 3, 8, 8), (2,)]
    x, size = noise(3, 3, 8, 8), np.array([2, 3])
    np.testing.assert_allclose(run(model, x, size=size), x.reshape(3, 192) * 6, rtol=1e-6)


@pytest.mark.parametrize(
    ("first", "others", "main"),
    [
        (("batch", 3, 8, 8), {"other": ["batch", 3, 8, 8]}, "x"),
        (("batch", 5), {"other": ["batch", 7]}, "x"),
        (("batch", 5), {"other": ["batch", 3, 8, 8]}, "other"),
        ((1, 1, 64), {"state": [1, 2, 8, 2]}, "x"),
    ],
)
def test_the_main_input(tmp_path: Path, first: Sequence[Any], others: dict[str, Any], main: str) -> None:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in others.items()]
    path = saved(build([helper.make_node("Relu", ["x"], ["y"])], {}, shape=first, more_inputs=infos), tmp_path)
    assert main_input(load_model(path)).name == main


@pytest.mark.parametrize("shape", [("batch", 5), ("batch", 4, 6)])
def test_inputs_of_lower_rank(tmp_path: Path, shape: Sequence[Any]) -> None:
    path = saved(build([helper.make_node("Relu", ["x"], ["y"])], {}, shape=shape), tmp_path)
    assert main_input(load_model(path)).shape == (None, *shape[1:])


def test_a_placeholder_is_no_symbol(tmp_path: Path) -> None:
    path = saved(conv_net(shape=("?", 3, "?", "?")), tmp_path)
    model = load_model(path, data={"x": (5, 3, 8, 12)})
    assert main_input(model).shape == (None, 3, 8, 12)
