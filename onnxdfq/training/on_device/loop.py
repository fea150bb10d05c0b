"""python train.py DATA.npz [EPOCHS] [BATCH] [RATE]: trains step.onnx; what DATA.npz holds is told in README.md."""

import sys

import numpy as np
import onnxruntime as ort


def main(data: str, epochs: int = 3, batch: int = 16, rate: float = 1e-3) -> None:
    """Writes trained.npz, a state.npz to go on from."""
    step = ort.InferenceSession("step.onnx")
    outputs = [entry.name for entry in step.get_outputs()]
    state = dict(np.load("state.npz"))
    sizes = {entry.name: entry.shape for entry in step.get_inputs() if entry.name not in (*state, "learning_rate")}
    arrays = {name: np.load(data)[name] for name in sizes}
    batch = next((shape[0] for shape in sizes.values() if isinstance(shape[0], int)), batch)
    kept = [entry.name for entry in step.get_inputs() if entry.name in state]
    for epoch in range(epochs):
        order, losses = np.random.default_rng(epoch).permutation(len(next(iter(arrays.values())))), []
        for rows in (order[at : at + batch] for at in range(0, len(order) - batch + 1, batch)):
            feeds = {name: array[rows] for name, array in arrays.items()} | {name: state[name] for name in kept}
            found = step.run(None, feeds | {"learning_rate": np.array(rate, np.float32)})
            state = {name.removeprefix("next:"): np.asarray(one) for name, one in zip(outputs, found, strict=True)}
            losses.append(float(state.pop("loss")))
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}", flush=True)
    np.savez("trained.npz", **state)


def trained(file: str = "trained.npz") -> ort.InferenceSession:
    """infer.onnx with what was learned, in integer kernels."""
    found = {name.removeprefix("infer:"): array for name, array in np.load(file).items() if name.startswith("infer:")}
    options = ort.SessionOptions()
    options.add_external_initializers(list(found), [ort.OrtValue.ortvalue_from_numpy(one) for one in found.values()])
    return ort.InferenceSession("infer.onnx", options)


if __name__ == "__main__":
    kinds = (str, int, int, float)
    main(*(kind(text) for kind, text in zip(kinds, sys.argv[1:], strict=False)))
