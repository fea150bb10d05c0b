"""`Target`: what a runtime demands of a file. Filled in from `onnxdfq/targets/*.toml`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from passes.target.kept_float import NOTHING_KEPT, KeptFloat
from passes.target.operator_rule import OperatorRule


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime's rules, as far as the graph and its numbers have to follow them.

    title: the runtime's name for people. verified: tests hold the rules against the runtime itself; where false, they
        rest on `sources` (documents) alone, and whoever writes for the target says so.
    sources: what the rules rest on: documents, or what was run.
    format: Quantize/Dequantize around float operators, QLinear operators, or the float network and the images beside
        it, for tools that quantize by themselves.
    opset, ir_version: the newest that the runtime reads. A newer model is converted; an older one keeps its own unless
        its containers need more.
    static_shapes: the batch is written as 1, and sizes that the model left open as those it was worked on with.
    inner_shapes: the shapes of values inside are written. Viewers show them, loaders infer them anyway.
    weight_bits, activation_bits: the widths that the target takes; 32 is float.
    weight_containers: width → element type; a weight takes the narrowest that holds its bits.
    weight_blocks: whether weights beside float activations may have a scale for every block of inputs.
    per_channel_weights: one scale per output channel, else one for the whole weight.
    narrow_weights: the least integer of a weight is left out, so that the grid is symmetric: [-127, 127].
    power_of_two: every scale, of weights and activations, has to be 2**k.
    unsigned_activations: the container of activations without a sign: "uint8" with zero point 0, "int8" with -128, or
        "none" where the target knows only signed grids around 0 (a bit of the range is then lost after a ReLU).
    signed_activations: that of activations with a sign: "int8" with zero point 0, or "uint8" with 128. Activations of
        16 bits take the type of twice the width in the same way.
    zero_points: "any" where activations without a sign may begin anywhere below zero, else "fixed".
    small_ranges: how an activation of fewer bits than its container is kept in range: "clip" (Quantize-Clip-Dequantize)
        or "none", where the target has no form for that and takes only whole containers.
    bias: "float"; "int32", dequantized with the scale of the input times that of the weight; "int8" with a scale of its
        own.
    shift_limits: the scales are shifts of a hardware with limits (`onnxdfq/calibration/shift_limits.py`).
    pair_limit: on processors without VNNI its kernels add two neighbouring products in integers that end here, and
        saturate: weights are kept within (`passes/quantize/pair_sums.py`). 0 where no kernel does.
    pair_order: which products those are, of a Conv without groups: neighbours in the "flat" row of taps by channels, or
        within each of the "taps".
    fused_activations: operators that the runtime merges into the one before when the range of the following
        QuantizeLinear makes them redundant, so that nothing is materialised between the two.
    fused_functions: operators without an integer kernel, one right behind the other, are one function that
        is quantized behind the last.
    fused_sums: a Conv adds the other operand of a sum to its own accumulator, which nothing rounds.
    batch_norm: what becomes of a BatchNormalization that no layer can take in: a "convolution" of one tap per channel,
        a "convolution unless summed" or within such a function, or "kept", where the runtime computes it along with the
        layer before.
    note: what to do next with the file, a sentence; {model} stands for its name, {stem} for that without its suffix,
        {archive} and {array} for the images, where the target has some.
    operators: operator → what the target makes of it.
    kept_float: what of the graph at hand stays float, on request. No file of a target says so.
    """

    name: str
    title: str
    verified: bool
    sources: tuple[str, ...]
    format: Literal["qdq", "qoperator", "float"]
    opset: int
    ir_version: int
    static_shapes: bool
    inner_shapes: bool
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    weight_containers: Mapping[int, str]
    per_channel_weights: bool
    narrow_weights: bool
    power_of_two: bool
    unsigned_activations: Literal["uint8", "int8", "none"]
    signed_activations: Literal["int8", "uint8"]
    zero_points: Literal["any", "fixed"]
    small_ranges: Literal["clip", "none"]
    bias: Literal["float", "int32", "int8"]
    shift_limits: bool
    pair_limit: int
    pair_order: Literal["flat", "taps"]
    fused_activations: tuple[str, ...]
    fused_functions: bool
    fused_sums: bool
    batch_norm: Literal["convolution", "convolution unless summed", "kept"]
    note: str = ""
    weight_blocks: bool = False
    operators: Mapping[str, OperatorRule] = field(default_factory=dict)
    kept_float: KeptFloat = NOTHING_KEPT

    @property
    def packs_weights(self) -> bool:
        """Whether weights of fewer bits take less room."""
        return len({self.weight_container(bits) for bits in self.weight_bits}) > 1

    def activation_container(self, bits: int, *, signed: bool) -> str:
        """The element type of an activation of so many bits; "none" where the target has no such grids."""
        return (self.signed_activations if signed else self.unsigned_activations).replace(
            "8", "8" if bits <= 8 else "16"
        )

    def weight_container(self, bits: int) -> str:
        """The element type of a weight of so many bits. Raises ValueError where none holds them."""
        for width, dtype in sorted(self.weight_containers.items()):
            if width >= bits:
                return dtype
        raise ValueError(f"{self.title} has no container for weights of {bits} bits")
