"""Where the parts of an output lie: each is found where a run of the graph puts the numbers of that part alone."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from passes.graph.parts import Parts, parts_of, split_into

from ...graphs import build

LEVELS = """a1 = Concat <axis=1> (b1, s1) a2 = Concat <axis=1> (b2, s2)
    f1 = Reshape (a1, flat) f2 = Reshape (a2, flat) j = Concat <axis=2> (f1, f2)"""
SIZES = {"b1": 4, "s1": 2, "b2": 4, "s2": 2}  # channels, of 3×3 positions


def model_of(body: str) -> ir.Model:
    inputs = ", ".join(f"float[N, {size}, 3, 3] {name}" for name, size in SIZES.items())
    return build(
        f"({inputs}) => (float[a, b, c] y) {{ {body} }}", flat=np.array([0, -1, 9]), grid=np.array([0, 3, 2, -1])
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"{LEVELS} y = Transpose <perm=[0, 2, 1]> (j)", (2, (4, 2))),  # YOLOX
        (f"{LEVELS} y = Identity (j)", (1, (4, 2))),
        ("j = Concat <axis=1> (b1, s1, b2) y = Reshape (j, flat)", (1, (4, 2, 4))),
        ("i = Concat <axis=1> (b1, s1) j = Concat <axis=1> (i, b2) y = Reshape (j, flat)", (1, (4, 2, 4))),
        ("j = Concat <axis=0> (b1, b2) y = Reshape (j, flat)", None),  # how large they are the file leaves open
        ("i = Concat <axis=2> (b1, b2) t = Reshape (i, grid) y = Squeeze (t)", None),  # the parts come apart
        ("j = Concat <axis=1> (b1, s1) r = Relu (j) y = Reshape (r, flat)", None),
        ("y = Reshape (b1, flat)", None),
    ],
)
def test_parts_are_found_where_they_lie(body: str, expected: tuple[int, tuple[int, ...]] | None) -> None:
    model = model_of(body)
    found = parts_of(model.graph.outputs[0])
    assert found == (None if expected is None else Parts(axis=expected[0], sizes=expected[1]))
    if found is None:
        return
    label = {"b1": 1, "s1": 2, "b2": 1 if "f2" in body else 3, "s2": 2}
    given = {name: np.full((2, size, 3, 3), label[name], "f4") for name, size in SIZES.items()}
    (output,) = ReferenceEvaluator(ir.to_proto(model)).run(None, given)
    parts = split_into(output, found)
    assert [np.unique(part).tolist() for part in parts] == [[number + 1] for number in range(len(parts))]


def test_an_output_of_another_size_is_one_part() -> None:
    (whole,) = split_into(np.zeros((2, 7, 3)), Parts(axis=1, sizes=(4, 2)))
    assert whole.shape == (2, 7, 3)


def test_a_chain_of_concats_ends() -> None:
    chain = " ".join(f"c{number} = Concat <axis=1> (c{number - 1}, c{number - 1})" for number in range(1, 12))
    model = build(f"(float[N, 2] c0) => (float[N, 4096] y) {{ {chain} y = Identity (c11) }}")
    found = parts_of(model.graph.outputs[0])
    assert found is not None
    assert sum(found.sizes) == 4096
    assert len(found.sizes) == 64


def test_a_fan_of_concats_ends() -> None:
    """Each reads the one before a hundred times: what is no number of parts to tell apart stays in one."""
    fan = " ".join(f"c{number} = Concat <axis=1> ({', '.join([f'c{number - 1}'] * 100)})" for number in range(1, 7))
    model = build(f"(float[N, 0] c0) => (float[N, 0] y) {{ {fan} y = Identity (c6) }}")
    found = parts_of(model.graph.outputs[0])
    assert found is None or len(found.sizes) <= 1000
