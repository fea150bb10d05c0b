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
from onnxdfq.report.diagnosis.switches import Network, Values
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


class Comparison:
    """Of a network with the float model, batch by batch.

    Args:
        network: Of the file.
        original: Float.
        path: Of the float model, for error messages.

    Raises:
        DataError: They are not the same network.
    """

    def __init__(self, network: Network, original: ir.Model, path: str) -> None:
        ours, theirs = ([name_of(one) for one in compared_values(model.graph)] for model in (network.model, original))
        self._feeds, self._path, self._names, self._device = Feeds(original), path, ours, network.device
        if len(ours) != len(theirs) or Feeds(network.model).main.name != self._feeds.main.name:
            raise DataError(f"{path} has other inputs or outputs than the file; they are not the same network.")
        self._graph = TorchGraph(original, outputs=theirs).to(network.device).eval()
        self._signal, self._noise, self._without = (np.zeros(len(ours)) for _ in range(3))

    @torch.no_grad()
    def add(self, samples: Samples, exact: Values, noisy: Values) -> None:
        """A batch, with the outputs of the network without its quantizers and with them. Raises as above."""
        batch = next(self._feeds.batches(self._graph.input_names, samples, len(samples), self._device))
        expected = self._graph(*batch)
        self._signal += [float(one.double().square().sum()) for one in expected]
        self._noise += _errors([noisy[name] for name in self._names], expected, self._path)
        self._without += _errors([exact[name] for name in self._names], expected, self._path)

    @property
    def closeness(self) -> Closeness:
        """Over all batches."""
        return Closeness(sqnr_db=_worst(self._noise, self._signal), without_db=_worst(self._without, self._signal))


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
