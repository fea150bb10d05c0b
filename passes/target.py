"""What a target demands of the file: data, filled in from `onnxdfq/targets/*.toml`."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime's rules, as far as the graph has to follow them.

    opset, ir_version: of the written model (a higher opset of the input is kept up to `max_opset`).
    signed_zero_point: where a signed activation's zero lies in the unsigned container; 128 means uint8 for all activations.
    fused_activations: operators that the runtime merges into the one before when the range of the following
        QuantizeLinear makes them redundant, so that nothing is materialised between the two.
    """

    name: str
    opset: int
    max_opset: int
    ir_version: int
    fused_activations: tuple[str, ...]
