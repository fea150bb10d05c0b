"""What methods that make images share: one generator per batch, and provenance."""

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from numpy.typing import NDArray

from onnxdfq.model_file import InputSpec
from onnxdfq.synthesis.input_range import InputRange
from onnxdfq.synthesis.network import TappedNetwork

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def batch_generators(seed: int, batches: int) -> list[torch.Generator]:
    """One generator per batch *index*, so that a batch's images do not depend on what computes them."""
    states = [np.random.SeedSequence([seed, batch]).generate_state(1, np.uint64)[0] for batch in range(batches)]
    return [torch.Generator().manual_seed(int(state)) for state in states]


def delivered(spec: InputSpec, planes: Float32[NDArray[np.float32], "n c h w"]) -> Shaped[NDArray[Any], "n ..."]:
    """Samples (N, C, H, W) as the input takes them: in its layout, and as whole numbers where it takes bytes."""
    found = np.ascontiguousarray(spec.from_planes(planes))
    return found.round().clip(0, 255).astype(np.uint8) if spec.is_bytes else found


def describe(method: "DataclassInstance", network: TappedNetwork | None, scale: InputRange) -> dict[str, str]:
    """Provenance of images: settings, input range, versions, and a hash of the running statistics that they fit.

    Args:
        method: A dataclass whose fields are the settings.
        network: The one that was inverted; None for a method that inverts none.
        scale: From standardised pixels to the model's units.
    """
    entries: dict[str, Any] = {
        "settings": json.dumps(asdict(method), sort_keys=True),
        "input_range": scale.source,
        "input_mean": " ".join(f"{number:.6g}" for number in scale.mean),
        "input_std": " ".join(f"{number:.6g}" for number in scale.std),
        "torch": str(torch.__version__),
        "threads": str(torch.get_num_threads()),
    }
    if network is not None:
        statistics = torch.stack([network.targets.mean, network.targets.var]).cpu().numpy()
        entries |= {
            "device": network.device.type,
            "precision": network.precision,
            "statistics": hashlib.sha256(statistics.tobytes()).hexdigest()[:16],
        }
    return entries
