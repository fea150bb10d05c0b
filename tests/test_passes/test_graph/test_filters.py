"""Which convolutions are depthwise."""

import numpy as np
import pytest

from passes.graph.filters import is_depthwise

from ...graphs import build


@pytest.mark.parametrize(
    ("operator", "group", "sizes", "expected"),
    [
        ("Conv", 4, (4, 1, 3, 3), True),
        ("Conv", 4, (8, 1, 3, 3), True),  # two outputs of each channel
        ("Conv", 2, (4, 2, 3, 3), False),
        ("Conv", 1, (4, 4, 3, 3), False),
        ("ConvTranspose", 4, (4, 1, 3, 3), True),
        ("ConvTranspose", 4, (4, 2, 3, 3), True),
        ("ConvTranspose", 2, (4, 1, 3, 3), False),  # two channels in each group
    ],
)
def test_depthwise(operator: str, group: int, sizes: tuple[int, ...], expected: bool) -> None:
    outside = sizes[0] if operator == "Conv" else sizes[1] * group
    text = f"(float[1,4,6,6] x) => (float[1,{outside},u,v] y) {{ y = {operator} <group = {group}> (x, w) }}"
    model = build(text, w=np.zeros(sizes, np.float32))
    assert is_depthwise(model.graph[0]) == expected
