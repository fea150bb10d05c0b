"""Numbers that are legal floats and that no network computes from are refused by name."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxdfq.errors import ModelFileError
from onnxdfq.model_file.loading import read_float_model

from .conftest import batch_norm, build, saved, weight


def norm_net(epsilon: float = 1e-5, alpha: float = 1.0, **changed: list[float]) -> onnx.ModelProto:
    """Conv, BatchNormalization 'bn' of 4 channels, LeakyRelu 'act'. changed: its parameters, by suffix."""
    norm, parameters = batch_norm("bn", "c", "n", 4)
    norm.attribute.append(helper.make_attribute("epsilon", float(epsilon)))
    names = dict(zip(("scale", "bias", "mean", "var"), list(norm.input)[1:], strict=True))
    parameters |= {names[which]: np.array(numbers, np.float32) for which, numbers in changed.items()}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], "conv"),
        norm,
        helper.make_node("LeakyRelu", ["n"], ["y"], "act", alpha=alpha),
    ]
    return build(nodes, {"k": weight(4, 3, 1, 1), **parameters}, opset=21, shape=("N", 3, 8, 8), output=("N", 4, 8, 8))


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (norm_net(var=[1, -1, 1, 1]), r"variance '.*' of channel 1 plus epsilon is -0.99999 and has to be above 0"),
        (norm_net(var=[0, 0, 0, 0], epsilon=0), "of channel 0 plus epsilon is 0"),
        (norm_net(var=[1, 1, 1, 1], epsilon=-2), "of channel 0 plus epsilon is -1"),
        (norm_net(scale=[1, 1, 3e38, 1], var=[1e-6] * 4, epsilon=0), r"comes to 3e\+41 in channel 2"),
        (norm_net(mean=[3e38] * 4, var=[1e-6] * 4, epsilon=0), r"comes to .*e\+.* in channel 0"),
        (norm_net(epsilon=float("inf")), "epsilon of BatchNormalization 'bn' is inf"),
        (norm_net(epsilon=float("nan")), "epsilon of BatchNormalization 'bn' is nan"),
        (norm_net(alpha=float("-inf")), "alpha of LeakyRelu 'act' is -inf"),
        (norm_net(var=[1, 1, 1]), "are not four lists of one length"),
    ],
)
def test_what_no_network_computes_from_is_refused(model: onnx.ModelProto, found: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=found) as caught:
        read_float_model(saved(model, tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "model",
    [
        norm_net(var=[0, 0, 0, 0]),
        norm_net(var=[3e38] * 4),
        norm_net(var=[-1e-6, 1, 1, 1]),
        norm_net(scale=[0, 0, -1, 1]),
        norm_net(mean=[1e38, -1e38, 0, 0], var=[1, 1, 1, 1]),
    ],
)
def test_what_a_network_computes_from_is_not(model: onnx.ModelProto, tmp_path: Path) -> None:
    read_float_model(saved(model, tmp_path))
