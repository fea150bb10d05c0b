"""The README of a package."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxdfq.model_file import inputs
from passes.graph.text import printable
from passes.training.parameters import Parameter
from passes.training.step import Step
from passes.write.provenance import read_provenance

if TYPE_CHECKING:
    from onnxdfq.training.on_device.package import Training

_TEXT = """# Training on the device

`step.onnx` is one step of training as an ordinary ONNX graph: forward, loss, backward and optimizer, quantizers
included. Any ONNX Runtime runs it; nothing here needs torch or onnxdfq.

    pip install numpy onnxruntime
    python train.py data.npz 3 16 {rate}      # epochs, batch, learning rate

`train.py` is the whole loop. It writes `trained.npz`, which is a `state.npz` to go on from.

| file | what |
|---|---|
| step.onnx | (batch, state, learning_rate) → (loss, next state): `next:KEY` is what KEY becomes |
| state.npz | parameters and the optimizer's state, {count:,} numbers that train in {tensors:,} tensors |
| infer.onnx | the model that infers; what trains lies in infer.onnx.data |
| train.py | the loop |

## Data
{data}

## What trains
`{train}`, by {optimizer}, to make {loss} small. The learning rate is fed with every batch.
{notes}
## Inference
`infer:NAME` in the state is what the initializer NAME of infer.onnx becomes: integers where it holds integers.
ONNX Runtime takes them before it optimises, so that integer kernels stay: see `trained` in train.py. Where a language
has no `add_external_initializers`, write the tensors to infer.onnx.data instead, one behind the other in the order of
`state.npz`, each in row-major order, and load infer.onnx.
{saturation}"""

RATES = {"head": 1e-2, "biases": 1e-2, "scales": 1e-2, "all": 1e-4}
"""Learning rates to begin with: one step of Adam moves each number by about that."""

_SATURATION = """
Integers that training found may be beyond what 16-bit sums of old processors hold, which compress keeps away from:
write them to infer.onnx.data and run `onnxdfq lint infer.onnx --require exact`.
"""


def readme(
    model: ir.Model, step: Step, parameters: Sequence[Parameter], training: "Training", notes: Sequence[str]
) -> str:
    """Text of README.md.

    Args:
        model: Of infer.onnx.
        step: Of step.onnx.
        parameters: That train.
        training: As it was asked for.
        notes: What was told to the user.
    """
    target = next(value for value in step.model.graph.inputs if value.name in ("labels", "target"))
    lines = [
        f"data.npz holds, sample by sample, `{printable(spec.name)}` ({spec.text()}, {spec.dtype.name.lower()})"
        for spec in inputs(model)
    ]
    sizes = ", ".join("N" if not isinstance(size, int) else str(size) for size in target.shape or ())
    lines.append(f"`{target.name}` ({sizes}, {'int64' if target.name == 'labels' else 'float32'})")
    norm = read_provenance(model).get("norm")
    images = f"\nPixels from 0 to 1 come as (pixel - mean) / std, with mean/std {norm}." if norm else ""
    return _TEXT.format(
        count=sum(one.start.size for one in parameters),
        tensors=len(parameters),
        data=" and ".join(lines) + "." + images,
        rate=f"{RATES[training.train]:g}",
        train=training.train,
        optimizer=training.optimizer,
        loss=training.loss,
        notes="".join(f"{note}\n" for note in notes),
        saturation=_SATURATION if any(one.kind == "integer" for one in parameters) else "",
    )
