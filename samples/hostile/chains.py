"""Long chains: what `inspect`, `lint` and `compress` cost at 1,250 to 10,000 nodes: `python -m samples.hostile.chains`.

Seconds are of the processor, of whole processes. Beside them stand those of two tools alone, once each: onnxsim on the
chain, and ONNX Runtime opening the written file, which a compression does twice. Names measure these chains alone and
keep the rows of others.
"""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from samples.record import read_rows, write_results

RESULTS = Path(__file__).with_name("chains.json")
SIZES = (1_250, 2_500, 5_000, 10_000)
SEED = 0
CHANNELS = 3
COMMANDS = {"inspect": ["inspect"], "lint": ["lint"], "compress": ["compress", "--method", "noise", "--images", "4"]}
ONNXSIM = "import onnx, onnxsim, sys; onnxsim.simplify(onnx.load(sys.argv[1]), skip_fuse_bn=True, certify=False)"
SESSION = (
    "import onnxruntime, sys; o = onnxruntime.SessionOptions(); o.log_severity_level = 4; o.intra_op_num_threads = 1; "
    "onnxruntime.InferenceSession(sys.argv[1], o, providers=['CPUExecutionProvider'])"
)


class Chain:
    """Nodes one behind the other, from an image to an output of the same size, between a Conv and a Relu."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(SEED)
        self.last = "x"
        self.convolve()

    def add(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """One more node, and the name of its output; without inputs it reads the last one."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs or [self.last], [name], f"n{len(self.nodes)}", **attributes))
        self.last = name
        return name

    def constant(self, array: NDArray[Any]) -> str:
        """An initializer."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def numbers(self, low: float, high: float, *shape: int) -> str:
        """An initializer of random numbers."""
        return self.constant(self._random.uniform(low, high, shape).astype(np.float32))

    def convolve(self, channels: int = CHANNELS) -> None:
        """A Conv of one tap that keeps the size of numbers about as it is."""
        weight = self._random.normal(0, channels**-0.5, (CHANNELS, channels, 1, 1)).astype(np.float32)
        self.add("Conv", self.last, self.constant(weight))

    def normalize(self) -> None:
        """A BatchNormalization."""
        ranges = ((0.8, 1.2), (-0.1, 0.1), (-0.1, 0.1), (0.5, 1.5))
        self.add("BatchNormalization", self.last, *(self.numbers(*ends, CHANNELS) for ends in ranges))

    def model(self, prefix: str = "") -> onnx.ModelProto:
        """The chain as a model. prefix: of all names."""
        self.add("Relu")
        shape = ["N", CHANNELS, 4, 4]
        ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", self.last)]
        graph = helper.make_graph(self.nodes, "chain", ends[:1], ends[1:], self._constants)
        for each in (*graph.node, *graph.initializer, *graph.input, *graph.output):
            each.name = prefix + each.name
        for node in graph.node:
            node.input[:] = [prefix + name for name in node.input]
            node.output[:] = [prefix + name for name in node.output]
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _conv_bn_relu(chain: Chain) -> None:
    chain.convolve()
    chain.normalize()
    chain.add("Relu")


def _add_constant(chain: Chain) -> None:
    chain.add("Add", chain.last, chain.constant(np.full((1, CHANNELS, 1, 1), 1e-3, np.float32)))


def _reshape_transpose(chain: Chain) -> None:
    chain.add("Transpose", perm=[0, 2, 3, 1])
    chain.add("Reshape", chain.last, chain.constant(np.array([0, CHANNELS, 4, 4])))


def _diamond_of_sums(chain: Chain) -> None:
    start = chain.last
    one, other = chain.add("Relu", start), chain.add("Sigmoid", start)
    chain.add("Add", one, other)


def _diamond_of_concats(chain: Chain) -> None:
    start = chain.last
    one, other = chain.add("Relu", start), chain.add("Sigmoid", start)
    chain.add("Concat", one, other, axis=1)
    chain.convolve(2 * CHANNELS)


def _constant_nodes(chain: Chain) -> None:
    start = chain.last
    factor = chain.add("Constant", value=numpy_helper.from_array(np.full((1, CHANNELS, 1, 1), 0.999, np.float32)))
    del chain.nodes[-1].input[:]
    chain.add("Mul", start, factor)


def _conv_relu(chain: Chain) -> None:
    chain.convolve()
    chain.add("Relu")


CHAINS: dict[str, Callable[[Chain], Any]] = {
    "relu": lambda chain: chain.add("Relu"),
    "sigmoid": lambda chain: chain.add("Sigmoid"),
    "identity": lambda chain: chain.add("Identity"),
    "add_constant": _add_constant,
    "conv_bn_relu": _conv_bn_relu,
    "reshape_transpose": _reshape_transpose,
    "diamond_of_sums": _diamond_of_sums,
    "diamond_of_concats": _diamond_of_concats,
    "constant_nodes": _constant_nodes,
    "long_names": _conv_relu,
}


def build(name: str, nodes: int) -> onnx.ModelProto:
    """The chain of this name with about as many nodes."""
    chain = Chain()
    while len(chain.nodes) < nodes - 1:
        CHAINS[name](chain)
    return chain.model("long_" * 50 if name == "long_names" else "")


def timed(*command: str | Path) -> tuple[float, int]:
    """Seconds of the processor that a process takes, and its exit code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run([sys.executable, *map(str, command)], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1), found.returncode


def measure(name: str, nodes: int) -> dict[str, Any]:
    """One row."""
    row: dict[str, Any] = {"chain": name, "nodes": nodes, "seed": SEED}
    with tempfile.TemporaryDirectory() as folder:
        path, written = Path(folder) / "chain.onnx", Path(folder) / "written.onnx"
        onnx.save(build(name, nodes), path)
        for command, arguments in COMMANDS.items():
            output = ["-o", written, "-q"] if command == "compress" else []
            row[f"seconds_{command}"], code = timed("-m", "onnxdfq", arguments[0], path, *arguments[1:], *output)
            row[f"exit_{command}"] = code
        row["seconds_onnxsim"], _ = timed("-c", ONNXSIM, path)
        if written.exists():
            row["seconds_session"], _ = timed("-c", SESSION, written)
    print(json.dumps(row), flush=True)
    return row


def main(names: list[str]) -> None:
    """Measure the chains that are named, or all."""
    known = {(row["chain"], row["nodes"]): row for row in read_rows(RESULTS)}
    for name in names or CHAINS:
        for nodes in SIZES:
            known[name, nodes] = measure(name, nodes)
            write_results(
                RESULTS, [known[key] for key in sorted(known, key=lambda key: (list(CHAINS).index(key[0]), key))]
            )


if __name__ == "__main__":
    main(sys.argv[1:])
