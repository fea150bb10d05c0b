"""Operators by what they do, as far as integer kernels tell them apart."""

LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
ELEMENTWISE = frozenset({"Add", "Div", "Mul", "Sub"})
POOLS = frozenset({
    "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool", "ReduceMax", "ReduceMean",
})  # fmt: skip
ACTIVATIONS = frozenset({
    "Celu", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "LogSoftmax", "Mish", "PRelu",
    "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu",
})  # fmt: skip
CURVES = ACTIVATIONS - {"LogSoftmax", "Softmax"}  # of one number each
NORMALIZATIONS = frozenset({
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization",
})  # fmt: skip
JUDGED = LINEAR | ELEMENTWISE | POOLS | ACTIVATIONS | NORMALIZATIONS | {"Concat"}
