"""What a target demands of the file: data, filled in from `onnxdfq/targets/*.toml`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime's rules, as far as the graph has to follow them.

    signed_activations: the container of activations with a sign: "int8" with zero point 0, or "uint8" with 128.
    fused_activations: operators that the runtime merges into the one before when the range of the following
        QuantizeLinear makes them redundant, so that nothing is materialised between the two.
    """

    name: str
    signed_activations: Literal["int8", "uint8"]
    fused_activations: tuple[str, ...]
