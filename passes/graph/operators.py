"""`TRAITS`: the properties of ONNX operators that passes depend on, and the sets of operators that follow from them.

An operator that no set contains needs no row. Purposes that want less than a set say at their place what they leave
out, and why.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "linear", "elementwise", "pool", "activation", "function", "normalization", "movement", "random", "other"
]


@dataclass(frozen=True, kw_only=True)
class Traits:
    """The properties of one operator, as a function of its first input.

    kind: "linear" multiplies with weights; "elementwise" combines two tensors; "activation" and "function" both map
        numbers to numbers, but networks end layers with the former; "movement" only changes the places of numbers.
    pointwise: each output number follows from the input number in its place alone.
    homogeneous: f(s x) = s f(x) for every scale s > 0 that belongs to a channel.
    selects: every output number is one of the input, between some of them, or zero; so the output needs no grid of its
        own. True of every movement.
    output_range: least and greatest output number, where these are constants that calibration may rely on.
    parameters: the input slots that hold what training found.
    """

    kind: Kind
    pointwise: bool = False
    homogeneous: bool = False
    selects: bool = False
    output_range: tuple[float, float] | None = None
    parameters: tuple[int, ...] = ()


def _activation(
    *, pointwise: bool = True, homogeneous: bool = False, output_range: tuple[float, float] | None = None
) -> Traits:
    return Traits(kind="activation", pointwise=pointwise, homogeneous=homogeneous, output_range=output_range)


FUNCTION = Traits(kind="function", pointwise=True)
MOVEMENT = Traits(kind="movement", selects=True)
RANDOM_NUMBERS = Traits(kind="random")

TRAITS: Mapping[str, Traits] = {
    "Conv": Traits(kind="linear", parameters=(1, 2)),
    "ConvTranspose": Traits(kind="linear", parameters=(1, 2)),
    "Gemm": Traits(kind="linear", parameters=(0, 1, 2)),
    "MatMul": Traits(kind="linear", parameters=(0, 1)),
    "Add": Traits(kind="elementwise"),
    "Div": Traits(kind="elementwise"),
    "Mul": Traits(kind="elementwise"),
    "Sub": Traits(kind="elementwise"),
    "AveragePool": Traits(kind="pool", homogeneous=True),
    "GlobalAveragePool": Traits(kind="pool", homogeneous=True),
    "GlobalMaxPool": Traits(kind="pool", homogeneous=True, selects=True),
    "LpPool": Traits(kind="pool"),
    "MaxPool": Traits(kind="pool", homogeneous=True, selects=True),
    "ReduceMax": Traits(kind="pool", selects=True),
    "ReduceMean": Traits(kind="pool"),
    "Celu": _activation(),
    "Clip": _activation(),
    "Elu": _activation(),
    "Erf": _activation(),
    "Gelu": _activation(),
    "HardSigmoid": _activation(output_range=(0.0, 1.0)),
    "HardSwish": _activation(),
    "LeakyRelu": _activation(homogeneous=True),
    "LogSoftmax": _activation(pointwise=False),
    "Mish": _activation(),
    "PRelu": _activation(homogeneous=True),
    "Relu": _activation(homogeneous=True),
    "Selu": _activation(),
    "Sigmoid": _activation(output_range=(0.0, 1.0)),
    "Softmax": _activation(pointwise=False, output_range=(0.0, 1.0)),
    "Softplus": _activation(),
    "Softsign": _activation(),
    "Swish": _activation(),
    "Tanh": _activation(),
    "ThresholdedRelu": _activation(),
    "Exp": FUNCTION,
    "Log": FUNCTION,
    "Neg": FUNCTION,
    "Pow": FUNCTION,
    "Reciprocal": FUNCTION,
    "Sqrt": FUNCTION,
    "BatchNormalization": Traits(kind="normalization", parameters=(1, 2, 3, 4)),
    "GroupNormalization": Traits(kind="normalization"),
    "InstanceNormalization": Traits(kind="normalization"),
    "LayerNormalization": Traits(kind="normalization"),
    "DepthToSpace": MOVEMENT,
    "Expand": MOVEMENT,
    "Flatten": MOVEMENT,
    "Gather": MOVEMENT,
    "GatherElements": MOVEMENT,
    "GatherND": MOVEMENT,
    "Identity": MOVEMENT,
    "Reshape": MOVEMENT,
    "Slice": MOVEMENT,
    "SpaceToDepth": MOVEMENT,
    "Split": MOVEMENT,
    "Squeeze": MOVEMENT,
    "Tile": MOVEMENT,
    "Transpose": MOVEMENT,
    "Unsqueeze": MOVEMENT,
    "Concat": Traits(kind="other"),
    "Pad": Traits(kind="other", selects=True),
    "ReduceMin": Traits(kind="other", selects=True),
    "Resize": Traits(kind="other", homogeneous=True, selects=True),
    "Bernoulli": RANDOM_NUMBERS,
    "Multinomial": RANDOM_NUMBERS,
    "RandomNormal": RANDOM_NUMBERS,
    "RandomNormalLike": RANDOM_NUMBERS,
    "RandomUniform": RANDOM_NUMBERS,
    "RandomUniformLike": RANDOM_NUMBERS,
}


def _where(holds: Callable[[Traits], bool]) -> frozenset[str]:
    return frozenset(op_type for op_type, traits in TRAITS.items() if holds(traits))


LINEAR = _where(lambda traits: traits.kind == "linear")
LAYERS = LINEAR - {"MatMul"}  # those that can have a bias
ELEMENTWISE = _where(lambda traits: traits.kind == "elementwise")
POOLS = _where(lambda traits: traits.kind == "pool")
ACTIVATIONS = _where(lambda traits: traits.kind == "activation")
CURVES = _where(lambda traits: traits.kind == "activation" and traits.pointwise)
POINTWISE = _where(lambda traits: traits.pointwise)
NORMALIZATIONS = _where(lambda traits: traits.kind == "normalization")
MOVEMENTS = _where(lambda traits: traits.kind == "movement")
SELECTIONS = _where(lambda traits: traits.selects)
HOMOGENEOUS = _where(lambda traits: traits.homogeneous)
RANDOM = _where(lambda traits: traits.kind == "random")
KNOWN_RANGE = {op_type: traits.output_range for op_type, traits in TRAITS.items() if traits.output_range is not None}
PARAMETERS = {op_type: traits.parameters for op_type, traits in TRAITS.items() if traits.parameters}

# What lint has a verdict on. Not on movements: they compute nothing, and go along with what is beside them.
JUDGED = LINEAR | ELEMENTWISE | POOLS | ACTIVATIONS | NORMALIZATIONS | {"Concat"}
# Each channel by itself. The pointwise ones that are missing stand for parts of a formula (Erf) or have not been tried.
CHANNELWISE = HOMOGENEOUS | (CURVES - {"Celu", "Erf", "Softsign", "ThresholdedRelu"})
