"""GDFQ's figure 1: where made data lie between two classes in a plane: `python -m samples.generators.boundaries`.

A small network with BatchNormalization learns which side of a curve a point lies on. Noise, ZeroQ and GDFQ then make
points from that network alone. Writes boundaries.json and, with matplotlib, boundaries.png, beside this file.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

import onnxdfq
from onnxdfq.methods import Gdfq, Method, Noise, ZeroQ
from samples.record import write_results

FOLDER = Path(__file__).parent
SEED, COUNT, SIDE = 0, 512, 4.0
METHODS: dict[str, Method] = {
    "noise": Noise(),
    "zeroq": ZeroQ(steps=500),
    "gdfq": Gdfq(warm_up=500, steps=1, batch_size=128, width=64),
}

Points = NDArray[np.float32]


def labels_of(points: Points) -> NDArray[np.int64]:
    """Which side of a sine a point lies on."""
    return (points[:, 1] > 1.5 * np.sin(1.2 * points[:, 0])).astype(np.int64)


def trained() -> tuple[nn.Sequential, Points]:
    """A network of three layers, and the points that it learned from."""
    torch.manual_seed(SEED)
    points = np.random.default_rng(SEED).uniform(-SIDE, SIDE, (4096, 2)).astype(np.float32)
    x, y = torch.from_numpy(points), torch.from_numpy(labels_of(points))
    width = 32
    net = nn.Sequential(
        *(nn.Linear(2, width), nn.BatchNorm1d(width), nn.ReLU()),
        *(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()),
        nn.Linear(width, 2),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(400):
        part = torch.randint(len(x), (256,))
        loss = nn.functional.cross_entropy(net(x[part]), y[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval(), points


def as_onnx(net: nn.Sequential) -> onnx.ModelProto:
    """The network, its BatchNormalizations in place."""
    nodes, tensors, value = [], [], "points"

    def constant(tensor: Tensor) -> str:
        tensors.append(numpy_helper.from_array(tensor.detach().numpy(), f"c{len(tensors)}"))
        return str(tensors[-1].name)

    for place, layer in enumerate(net):
        if isinstance(layer, nn.Linear):
            kind, given = "Gemm", [layer.weight.T.contiguous(), layer.bias]
        elif isinstance(layer, nn.BatchNorm1d):
            kind, given = "BatchNormalization", [layer.weight, layer.bias, layer.running_mean, layer.running_var]
        else:
            kind, given = "Relu", []
        nodes.append(helper.make_node(kind, [value, *map(constant, given)], [f"v{place}"], f"n{place}"))
        value = f"v{place}"
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 2]) for name in ("points", value)]
    graph = helper.make_graph(nodes, "plane", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def measure(net: nn.Sequential, points: Points) -> dict[str, Any]:
    """How near points lie to the boundary, and how they are shared between the classes."""
    with torch.no_grad():
        scores = net(torch.from_numpy(points))
        answers = scores.softmax(1).numpy()
    return {
        "count": len(points),
        "share of the second class": float(answers.argmax(1).mean()),
        "share that lies within the square": float((np.abs(points) <= SIDE).all(1).mean()),
        "spread": float(points.std(0).mean()),
    }


def main() -> None:
    """Make the points, measure them and draw them."""
    net, real = trained()
    model = as_onnx(net)
    made = {"real": real[:COUNT]}
    for name, method in METHODS.items():
        found = onnxdfq.compress(model, method=method, bits="w4a4", tuning="none", images=COUNT, seed=SEED).images
        assert found is not None
        made[name] = found.pixels
    rows = [{"points": name, "seed": SEED, **measure(net, points)} for name, points in made.items()]
    for row in rows:
        print(row)
    write_results(FOLDER / "boundaries.json", rows)
    try:
        draw(net, made)
    except ImportError:
        print("matplotlib is not there: no picture is drawn (pip install onnxdfq[samples])")


def draw(net: nn.Sequential, made: dict[str, Points]) -> None:
    """One panel for each kind of points, over what the network answers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    axis = np.linspace(-SIDE, SIDE, 101, dtype=np.float32)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    with torch.no_grad():
        answers = net(torch.from_numpy(grid)).argmax(1).numpy().reshape(101, 101)
    figure, panels = pyplot.subplots(1, len(made), figsize=(3 * len(made), 3), layout="constrained")
    for panel, (name, points) in zip(panels, made.items(), strict=True):
        panel.contourf(axis, axis, answers, levels=[-0.5, 0.5, 1.5], alpha=0.25, colors=["tab:blue", "tab:orange"])
        panel.scatter(*points.T, s=3, c=labels_of(points), cmap="coolwarm")
        panel.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), title=name)
    figure.savefig(FOLDER / "boundaries.png", dpi=80)


if __name__ == "__main__":
    main()
