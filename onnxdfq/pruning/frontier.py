"""`Frontier`: a network run node by node over all samples, each node once."""

from collections.abc import Iterator, Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.cache import Cache
from onnxdfq.engine.dtypes import from_numpy
from onnxdfq.engine.feeds import Feeds
from onnxdfq.images.samples import Samples, SamplesLike
from passes.graph.bodies import subgraphs
from passes.graph.editing import name_of

BATCH_SIZE = 32


class Frontier:
    """What a network has computed of all samples up to a node, as far as nodes behind it read it.

    The graph may be edited behind the frontier. Where a value there is not one row to a sample, or the model runs at
    one batch size only, the frontier stays where it was, and more is computed again.

    Args:
        model: float.
        samples: in the model's input units. Where the model runs at one batch size only, those that do not fill a
            batch are left out.
        cache: of float32, where the values lie.
        device: where the network runs.
    """

    def __init__(self, model: ir.Model, samples: SamplesLike, cache: Cache, device: str) -> None:
        self._model, self._cache, self._device = model, cache, device
        self._feeds = Feeds(model)
        self._feeds.check(samples)
        whole = len(samples) - len(samples) % (self._feeds.batch or 1)
        self._samples = Samples.of(samples)[:whole]
        self._size = self._feeds.run_size(self._samples, BATCH_SIZE)
        self._nodes = {name_of(node): index for index, node in enumerate(model.graph)}
        self._stays = self._feeds.batch is not None or any(subgraphs(node) for node in model.graph)
        self._values: dict[str, Tensor] = {}
        self._before: set[str] = set()  # what is computed already
        self._given = self._feeds.names  # of graph inputs and values, what the nodes behind are computed from

    @torch.no_grad()
    def advance(self, node: str) -> None:
        """Up to this node, which itself is not computed."""
        if self._stays:
            return
        position = self._nodes[node]
        names = self._crossing(position)
        new = [name for name in names if name not in self._given]
        found = self._computed(new)
        if found is not None:
            values = self._values | found
            self._values = {name: values[name] for name in names if name in values}
            self._given = tuple(names)
            before = list(self._model.graph)[:position]
            self._before = {name_of(value) for each in before for value in each.outputs}

    def is_behind(self, name: str) -> bool:
        """Whether a value is one that the frontier, or nodes behind it, compute."""
        return name in self._given or name not in self._before

    def batches(self, names: Sequence[str], model: ir.Model | None = None) -> Iterator[tuple[Tensor, ...]]:
        """Values by name, batch by batch, in the order of the samples.

        Args:
            names: of values for which `is_behind`.
            model: one that computes them otherwise from the same values; by default the network itself.
        """
        graph = self._graph(names, model)
        for start in range(0, len(self._samples), self._size):
            yield graph(*self._inputs(graph, slice(start, start + self._size)))

    def _crossing(self, position: int) -> list[str]:
        """What lies before a node and is read from there on, but for constants."""
        nodes = list(self._model.graph)
        before = {*self._feeds.names, *(name_of(value) for node in nodes[:position] for value in node.outputs)}
        read = (name_of(value) for node in nodes[position:] for value in node.inputs if value is not None)
        return [name for name in dict.fromkeys(read) if name in before]

    def _computed(self, names: Sequence[str]) -> dict[str, Tensor] | None:
        """These values of all samples; None where one of them is not one row to each."""
        if not names:
            return {}
        graph = self._graph(names)
        alone = graph(*self._inputs(graph, slice(0, 1)))
        if any(len(value) != 1 or value.ndim < 2 or not value.is_floating_point() for value in alone):
            return None
        kept = [self._cache.empty((len(self._samples), *value.shape[1:])) for value in alone]
        for start in range(0, len(self._samples), self._size):
            rows = slice(start, min(start + self._size, len(self._samples)))
            for values, found in zip(kept, graph(*self._inputs(graph, rows)), strict=True):
                if len(found) != rows.stop - rows.start:
                    return None
                values[rows] = found.to(values)
        return dict(zip(names, kept, strict=True))

    def _graph(self, names: Sequence[str], model: ir.Model | None = None) -> TorchGraph:
        return TorchGraph(model or self._model, inputs=self._given, outputs=names).to(self._device).eval()

    def _inputs(self, graph: TorchGraph, rows: slice) -> list[Tensor]:
        arrays = self._feeds.arrays(self._samples[rows])
        return [
            (self._values[name][rows] if name in self._values else from_numpy(arrays[name])).to(self._device)
            for name in graph.input_names
        ]
