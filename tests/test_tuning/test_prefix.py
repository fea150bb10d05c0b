"""Values over all images: which images, where a model runs at one batch size only."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch

from onnxdfq.engine.cache import Cache
from onnxdfq.tuning.prefix import Prefix


def test_images_that_do_not_fill_a_batch_are_left_out(build: Callable[..., ir.Model]) -> None:
    model = build("(float[4,3,2,2] x) => (float[4,12] y) { y = Reshape (x, s) }", s=np.array([4, 12]))
    pixels = np.zeros((6, 3, 2, 2), np.float32)
    with Cache() as cache:
        prefix = Prefix(model, pixels, cache, torch.device("cpu"))
        assert prefix.value("y").shape == (4, 12)
        assert len(prefix.value("x")) == 4


def test_an_input_that_is_no_image(build: Callable[..., ir.Model]) -> None:
    model = build("(float[N,3] x) => (float[N,3] y) { y = Relu (x) }")
    with Cache() as cache:
        prefix = Prefix(model, np.ones((6, 3), np.float32), cache, torch.device("cpu"))
        assert prefix.value("y").shape == (6, 3)
