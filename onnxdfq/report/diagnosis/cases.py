"""Cases of a network, and the findings in them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxdfq.report.diagnosis.case import Case
from onnxdfq.report.diagnosis.causes import findings_of
from onnxdfq.report.diagnosis.evidence import Evidence, Level
from onnxdfq.report.diagnosis.layers import Layer
from onnxdfq.report.diagnosis.measuring import Measured
from onnxdfq.report.diagnosis.result import Finding
from onnxdfq.report.diagnosis.switches import Network
from passes.graph.editing import is_op, name_of
from passes.graph.operators import MOVEMENTS
from passes.lint.lint import Finding as Kernel
from passes.quantize.quantizers import Grid, QuantizedConstant

LEAST = 0.02  # share of all noise; findings that cost less are not told


@dataclass(frozen=True, kw_only=True, eq=False)
class Inquiry:
    """All that is known of a network. kernels: by what people call a node; titles: output name → that."""

    network: Network
    layers: Sequence[Layer]
    stored: Mapping[str, QuantizedConstant]
    measured: Measured
    kernels: Mapping[str, Kernel]
    titles: Mapping[str, str]

    @cached_property
    def total(self) -> float:
        """What everything costs, each alone: noise over signal."""
        return sum(self.measured.costs.alone.values())

    def findings(self) -> tuple[Finding, ...]:
        """Those that cost most first; of equal ones the surest cause."""
        found: list[tuple[float, int, Finding]] = []
        least = LEAST * self.total
        for layer in self.layers:
            for case in (*self._activations(layer), *self._constants(layer)):
                # no cause costs more than what it is looked for in
                several = list(findings_of(case)) if case.harm >= least else []
                greatest = max((one.harm for one in several), default=0.0)
                if greatest >= least and greatest > 0:
                    found.extend((greatest, place, one) for place, one in enumerate(several))
        return tuple(one for _, _, one in sorted(found, key=lambda entry: (-entry[0], entry[1])))

    def kernel(self, layer: Layer) -> Kernel | None:
        """What the target makes of a layer."""
        return self.kernels.get(layer.name)

    def seen(self, name: str) -> Evidence | None:
        """Of the value that a quantizer reads."""
        return self.measured.runs.evidence.get(self.network.quantizers[name].source)

    def _activations(self, layer: Layer) -> Iterator[Case]:
        for name in layer.activations:
            quantizer = self.network.quantizers[name]
            harm = self.measured.cost([name]) or 0.0
            yield Case(
                layer=layer,
                tensor=quantizer.source,
                harm=harm,
                share=harm / max(self.total, 1e-30),
                estimated=layer.name in self.measured.estimated,
                kernel=self.kernel(layer),
                read_in_float=self._read_in_float(name),
                inside=name in self.network.switches,
                quantizer=quantizer,
                evidence=self.seen(name),
                inputs=self._inputs(layer.node) if layer.op_type == "Concat" else None,
                siblings=self._siblings(name),
            )

    def _constants(self, layer: Layer) -> Iterator[Case]:
        harm = self.measured.cost(layer.constants & self.network.constants.keys()) or 0.0
        case = Case(
            layer=layer,
            tensor=layer.weight,
            harm=harm,
            share=harm / max(self.total, 1e-30),
            estimated=layer.name in self.measured.estimated,
            kernel=self.kernel(layer),
            inside=layer.node is not None and layer.node.graph is not self.network.model.graph,
        )
        for name in filter(None, (layer.weight, layer.bias)):
            together = {self.measured.together.get(other) for other in layer.constants}
            own = self.measured.cost([name]) or 0.0 if len(together) > 1 else harm
            wanted = self._bias_scale(layer)
            mismatch = self._mismatch(layer, wanted) if name == layer.bias else 0.0
            own = max(own, mismatch)
            yield replace(
                case,
                tensor=name,
                harm=own,
                share=own / max(self.total, 1e-30),
                constant=self.network.constants.get(name),
                stored=self.stored.get(name),
                bias_scale=wanted,
                read=self.seen(layer.reads[0]) if layer.reads else None,
                computed=self._computed(layer),
            )

    def _bias_scale(self, layer: Layer) -> np.ndarray | None:
        weight = self.stored.get(layer.weight)
        if weight is None or not layer.reads or weight.grid.block:
            return None
        read = self.network.quantizers[layer.reads[0]].back
        found: np.ndarray = read.scale.reshape(-1) * weight.grid.scale.reshape(-1)
        return found

    def _mismatch(self, layer: Layer, wanted: np.ndarray | None) -> float:
        """What an integer kernel makes of an int32 bias on another grid, over the power of what the layer computes."""
        stored = self.stored.get(layer.bias)
        computed = self._computed(layer)
        if stored is None or wanted is None or computed is None or stored.grid.bits <= 16 or computed.signal <= 0:
            return 0.0
        if wanted.size not in (1, stored.integers.size):
            return 0.0
        added = stored.integers.reshape(-1) * wanted
        return min(float(np.square(added - stored.numbers.reshape(-1)).mean()) / computed.signal, 1.0)

    def _computed(self, layer: Layer) -> Level | None:
        return None if layer.node is None else self.measured.runs.levels.get(name_of(layer.node.outputs[0]))

    def _inputs(self, node: ir.Node | None) -> dict[str, tuple[Evidence, Grid | None]]:
        """What a Concat reads: the float value's name → how it looks, and its grid."""
        found = {}
        for value in () if node is None else node.inputs:
            quantizer = None
            while value is not None and is_op(value.producer(), "Identity", *MOVEMENTS, "Clip"):
                quantizer = quantizer or self.network.quantizers.get(name_of(value))
                producer = value.producer()
                if quantizer is not None or producer is None:
                    break
                value = producer.inputs[0]
            name = name_of(value) if quantizer is None else quantizer.source
            seen = self.measured.runs.evidence.get(name)
            if seen is not None:
                found[name] = (seen, None if quantizer is None else quantizer.grid)
        return found

    def _siblings(self, name: str) -> dict[str, tuple[Evidence, Grid | None]] | None:
        """What a Concat reads that reads this quantizer's value, by name of the float value."""
        value = self._values.get(name)
        while value is not None:
            readers = [use.node for use in value.uses()]
            concat = next((node for node in readers if is_op(node, "Concat")), None)
            if concat is not None:
                return self._inputs(concat)
            value = readers[0].outputs[0] if len(readers) == 1 and is_op(readers[0], "Identity") else None
        return None

    @cached_property
    def _values(self) -> dict[str, ir.Value]:
        return {name_of(value): value for node in self.network.model.graph.all_nodes() for value in node.outputs}

    def _read_in_float(self, name: str) -> bool:
        """Whether the target computes in float all that reads a quantizer's value."""
        waiting, seen = [self._values.get(name)], set[ir.Value]()
        while waiting:
            value = waiting.pop()
            if value is None or value in seen:
                continue
            seen.add(value)
            for use in value.uses():
                if is_op(use.node, "Identity", *MOVEMENTS):
                    waiting.extend(use.node.outputs)
                    continue
                kernel = self.kernels.get(self.titles.get(name_of(use.node.outputs[0]), name_of(use.node)))
                if kernel is None or kernel.verdict != "float":
                    return False
        return True
