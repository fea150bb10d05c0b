"""DGH and ZeroQ on inputs of every rank that BatchNormalization has."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.images.images import Images
from onnxdfq.methods import Dgh, ZeroQ
from onnxdfq.methods.method import Synthesis
from onnxdfq.synthesis.quality import evaluate_images

SHAPES = {"table": (6,), "signal": (2, 40), "picture": (3, 9, 12), "video": (2, 4, 6, 8)}


def network(build: Callable[..., ir.Model], shape: tuple[int, ...]) -> ir.Model:
    """A layer and its BatchNormalization, whose statistics are those of inputs of mean 0.3 and deviation 0.7."""
    random = np.random.default_rng(0)
    channels, taps = shape[0], [3] * (len(shape) - 1)
    weight = random.normal(size=(5, channels, *taps)).astype("f4")
    sizes = ",".join(map(str, shape))
    inner = ",".join(str(size - 2) for size in shape[1:])
    layer = "a = Conv (x, w)" if taps else "a = Gemm <transB = 1> (x, w)"
    statistics = {
        "scale": np.ones(5, "f4"),
        "bias": np.zeros(5, "f4"),
        "mean": (0.3 * weight.reshape(5, -1).sum(1)).astype("f4"),
        "var": (0.49 * np.square(weight).reshape(5, -1).sum(1)).astype("f4"),
    }
    out = f"[N,5{',' + inner if inner else ''}]"
    rest = "b = BatchNormalization (a, scale, bias, mean, var) y = Relu (b)"
    return build(f"(float[N,{sizes}] x) => (float{out} y) {{ {layer} {rest} }}", w=weight, **statistics)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("method", [Dgh(steps=40, batch_size=16), ZeroQ(steps=40, batch_size=16)], ids=["dgh", "zeroq"])
def test_samples_come_nearer_to_the_statistics(
    method: Synthesis, shape: tuple[int, ...], build: Callable[..., ir.Model]
) -> None:
    model = network(build, shape)
    found = method.synthesize(model, count=32, seed=0)
    assert found.pixels.shape == (32, *shape) and found.pixels.dtype == np.float32
    if isinstance(method, ZeroQ) and len(shape) == 1:
        return  # one number a channel has no deviation of its own to match
    far = Images(pixels=np.random.default_rng(1).normal(size=(32, *shape)).astype("f4"), method="noise", seed=0)
    assert evaluate_images(model, found).bn_distance < 0.5 * evaluate_images(model, far).bn_distance
