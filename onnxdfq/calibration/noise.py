"""Noise of a network's outputs over their signal, part by part."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from passes.graph.parts import Parts, split_into

Energies = dict[tuple[str, int], float]
"""By output and place of its part, the sum of squares."""


def errors(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What outputs are off by; nothing where the number of rows depends on the numbers, and they have others."""
    return {
        name: found[name] - value if found[name].shape == value.shape else torch.zeros_like(value)
        for name, value in exact.items()
    }


def energies(batches: Iterable[Mapping[str, Tensor]], parts: Mapping[str, Parts | None]) -> Energies:
    """Of outputs, or of their errors. parts: by output, where its parts lie."""
    total: Energies = {}
    for values in batches:
        for name, value in values.items():
            for place, part in enumerate(split_into(value, parts[name])):
                total[name, place] = total.get((name, place), 0.0) + float(part.double().square().sum())
    return total


def mean_share(noise: Energies, signal: Energies) -> float:
    """Noise over signal, the mean over the parts that hold any."""
    shares = [noise[part] / energy for part, energy in signal.items() if energy > 0]
    return sum(shares) / max(len(shares), 1)
