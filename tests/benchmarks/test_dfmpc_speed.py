"""DF-MPC on ResNet-18 and ResNet-50 with random weights: seconds of planning and writing, and peak memory.

The paper reports 2 s for ResNet-18 on a GPU.
"""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.benchmark

SCRIPT = """
import sys, time
import numpy as np
import onnx_ir as ir
from passes.dfmpc.compensate import Compensation, plan_compensation
from passes.dfmpc.plan import CompensateWeights
from passes.moments.moments import Moments

random = np.random.default_rng(0)
nodes, initializers = [], []


def constant(name, array):
    tensor = ir.tensor(array, name=name)
    value = ir.val(name, tensor.dtype, array.shape, const_value=tensor)
    initializers.append(value)
    return value


def node(op_type, inputs, shape, **attributes):
    made = ir.node(op_type, inputs, attributes, name=f"{op_type}_{len(nodes)}")
    made.outputs[0].name, made.outputs[0].shape = f"v{len(nodes)}", ir.Shape(shape)
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    nodes.append(made)
    return made.outputs[0]


def layer(x, outputs, kernel, stride=1, relu=True):
    channels, side = x.shape[1], x.shape[2]
    deviation = (2 / (channels * kernel**2)) ** 0.5
    weight = random.standard_normal((outputs, channels, kernel, kernel), np.float32) * np.float32(deviation)
    shape = ["N", outputs, side // stride, side // stride]
    pads, kernels, strides = [kernel // 2] * 4, [kernel] * 2, [stride] * 2
    w = constant(f"w{len(nodes)}", weight)
    x = node("Conv", [x, w], shape, pads=pads, kernel_shape=kernels, strides=strides, group=1)
    numbers = [random.uniform(low, 1.5, outputs).astype(np.float32) for low in (0.5, -0.5, -0.5, 0.5)]
    x = node("BatchNormalization", [x, *(constant(f"n{len(nodes)}_{i}", n) for i, n in enumerate(numbers))], shape)
    return node("Relu", [x], shape) if relu else x


def resnet(bottleneck, depths):
    image = ir.val("x", ir.DataType.FLOAT, ["N", 3, 224, 224])
    x = layer(image, 64, 7, 2)
    x = node("MaxPool", [x], ["N", 64, 56, 56], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        outputs = width * (4 if bottleneck else 1)
        for block in range(depth):
            stride = 2 if stage and not block else 1
            skip = x if x.shape[1] == outputs else layer(x, outputs, 1, stride, relu=False)
            if bottleneck:
                y = layer(layer(layer(x, width, 1), width, 3, stride), outputs, 1, relu=False)
            else:
                y = layer(layer(x, width, 3, stride), width, 3, relu=False)
            x = node("Relu", [node("Add", [y, skip], y.shape)], y.shape)
    channels = x.shape[1]
    x = node("GlobalAveragePool", [x], ["N", channels, 1, 1])
    x = node("Flatten", [x], ["N", channels])
    head = constant("head", random.standard_normal((1000, channels), np.float32) * np.float32(0.01))
    y = node("Gemm", [x, head, constant("bias", np.zeros(1000, np.float32))], ["N", 1000], transB=1)
    return ir.Model(
        ir.Graph([image], [y], nodes=nodes, initializers=initializers, opset_imports={"": 21}, name="g"), ir_version=10
    )


def peak():  # of this program alone: what getrusage tells begins with the process that started it
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


known = {"x": Moments(mean=np.zeros(3), std=np.ones(3))}
before = peak()
model = resnet(*{"resnet18": (False, (2, 2, 2, 2)), "resnet50": (True, (3, 4, 6, 3))}[sys.argv[1]])
size = sum(value.const_value.numpy().nbytes for value in model.graph.initializers.values())
start = time.perf_counter()
plan = plan_compensation(model, Compensation(low_bits=2, high_bits=6), moments=known)
CompensateWeights(plan)(model)
seconds = time.perf_counter() - start
ternary = sum(w.integers.size for w in plan.weights.values() if w.bits == 2) / (size / 4)
print(seconds, (peak() - before) / size, size / 4e6, ternary)
"""


@pytest.mark.parametrize(("name", "limit", "millions"), [("resnet18", 1.0, 11.7), ("resnet50", 2.0, 25.6)])
def test_seconds_and_memory(name: str, limit: float, millions: float) -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT, name], capture_output=True, text=True, check=True)
    seconds, memory, parameters, ternary = map(float, run.stdout.split())
    print(
        f"\n{name}: {parameters:.1f} M parameters, {ternary:.0%} of them ternary: {seconds:.2f} s, "
        f"peak {memory:.2f} times the model"
    )
    assert parameters == pytest.approx(millions, abs=0.1)
    assert ternary > 0.3
    assert seconds <= limit
    assert memory <= 3
