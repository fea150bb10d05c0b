"""What a recipe chooses among."""

from typing import Literal, get_args

Scales = Literal["power-of-two", "power-of-two-activations", "free"]
"""What is 2**k: the scales of weights and activations, those of activations, or none."""
Scheme = Literal["power-of-two", "power-of-two-activations", "free", "paper"]
"""Scales; or "paper": they are free, and of activations only those behind a Relu or Clip are quantized, as in papers on
generators. To compare with their figures: no device computes what is left in float."""
Clipping = Literal["mse", "aciq", "max"]
"""How thresholds are found; see `onnxdfq.calibration.thresholds`."""
Effort = Literal["fast", "standard", "paper"]
"""How many images and steps."""
Precision = Literal["auto", "float32", "bfloat16"]
"""What convolutions are computed in while images are made."""
LossForm = Literal["relative", "public", "paper"]
"""Which form of the losses on statistics and outputs; see `onnxdfq.synthesis.losses`."""
StatisticsForm = Literal["relative", "norm", "kl"]
"""How errors of a batch's statistics are measured: relative to each channel's deviation, as norms in the network's
units (DeepInversion), or as the divergence of two Gaussians (Knowledge Within)."""
OptimizerName = Literal["adam", "sgd"]
"""Of networks; "sgd" has Nesterov's momentum."""
Statistics = Literal["batch", "fixed"]
"""What BatchNormalizations normalise by while they train: the batch, whose statistics run along, or what they hold."""

SCHEMES, CLIPPINGS, EFFORTS, PRECISIONS = get_args(Scheme), get_args(Clipping), get_args(Effort), get_args(Precision)
LOSS_FORMS, STATISTICS_FORMS = get_args(LossForm), get_args(StatisticsForm)
OPTIMIZERS, STATISTICS = get_args(OptimizerName), get_args(Statistics)
ROUNDINGS = ("rtn", "gptq")
TUNINGS = ("none", "adaround", "brecq", "distil")
DEVICES = ("auto", "cpu", "cuda")
