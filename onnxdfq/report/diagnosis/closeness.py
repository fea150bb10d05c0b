"""How close a network is to the float model that it was made from, with its quantizers and without."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.feeds import Feeds
from onnxdfq.errors import DataError
from onnxdfq.images.samples import Samples
from onnxdfq.report.diagnosis.evidence import decibel
from onnxdfq.report.diagnosis.sweep import BATCH_SIZE
from onnxdfq.report.diagnosis.switches import Network
from passes.graph.compared import compared_values
from passes.graph.editing import name_of


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """In dB, of the worst output; None where nothing differs. without_db: without quantizers."""

    sqnr_db: float | None
    without_db: float | None

    @property
    def order(self) -> float:
        """The greater, the closer without quantizers."""
        return np.inf if self.without_db is None else self.without_db


def closeness(network: Network, original: ir.Model, samples: Samples, path: str) -> Closeness:
    """Both on the same samples.

    Args:
        network: Of the file.
        original: Float.
        samples: In the model's input units.
        path: Of the float model, for error messages.

    Raises:
        DataError: They are not the same network.
    """
    ours, theirs = ([name_of(one) for one in compared_values(model.graph)] for model in (network.model, original))
    feeds, other_feeds = Feeds(network.model), Feeds(original)
    if len(ours) != len(theirs) or feeds.main.name != other_feeds.main.name:
        raise DataError(f"{path} has other inputs or outputs than the file; they are not the same network.")
    graph = network.graph(feeds.names, ours)
    exact = TorchGraph(original, outputs=theirs).to(network.device).eval()
    size = feeds.batch or other_feeds.batch or BATCH_SIZE  # a file may be fixed to one that its float model is not
    parts = [samples[start : start + size] for start in range(0, len(samples) - size + 1, size)] or [samples]
    batches = (next(feeds.batches(feeds.names, part, size, network.device)) for part in parts)
    others = (next(other_feeds.batches(exact.input_names, part, size, network.device)) for part in parts)
    signal = np.zeros(len(ours))
    noise = {True: np.zeros(len(ours)), False: np.zeros(len(ours))}
    for batch, other in zip(batches, others, strict=True):
        with torch.no_grad():
            expected = exact(*other)
        signal += [float(one.double().square().sum()) for one in expected]
        values = dict(zip(feeds.names, batch, strict=True))
        for quantized, on in ((True, network.everything), (False, frozenset[str]())):
            found = _outputs(graph.run(values, on), ours)
            noise[quantized] += _errors(found, expected, path)
    return Closeness(sqnr_db=_worst(noise[True], signal), without_db=_worst(noise[False], signal))


def _outputs(found: dict[str, torch.Tensor], names: Sequence[str]) -> list[torch.Tensor]:
    return [found[name] for name in names]


def _errors(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], path: str) -> list[float]:
    errors = []
    for one, other in zip(found, expected, strict=True):
        if one.ndim != other.ndim or one.shape[1:] != other.shape[1:]:
            raise DataError(f"The outputs of {path} and of the file differ in shape; they are not the same network.")
        errors.append(float((one - other).double().square().sum()) if one.shape == other.shape else 0.0)
    return errors


def _worst(noise: np.ndarray, signal: np.ndarray) -> float | None:
    levels = [decibel(float(one), float(other)) for one, other in zip(noise, signal, strict=True)]
    return min((level for level in levels if level is not None), default=None)
