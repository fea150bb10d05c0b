"""The origin of a model as `dfq.*` metadata, which Netron shows (it cuts keys after 14 characters)."""

import logging
from collections.abc import Mapping

import onnx_ir as ir

from passes.graph.text import printable

logger = logging.getLogger(__name__)

PREFIX = "dfq."


class WriteProvenance(ir.passes.InPlacePass):
    """Replaces the model's `dfq.*` metadata by the given entries; the keys are given without the prefix.

    What cannot be printed is escaped."""

    def __init__(self, entries: Mapping[str, str]) -> None:
        self.entries = {PREFIX + key: printable(value) for key, value in entries.items()}
        too_long = [key for key in self.entries if len(key) > 14]
        if too_long:
            raise ValueError(f"Netron cuts metadata keys after 14 characters: {too_long}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        for key in [key for key in model.metadata_props if key.startswith(PREFIX)]:
            del model.metadata_props[key]
        model.metadata_props.update(self.entries)
        logger.debug("the metadata of the model gets %s", ", ".join(self.entries))
        return ir.passes.PassResult(model, modified=bool(self.entries))


def read_provenance(model: ir.Model) -> dict[str, str]:
    """The entries of `WriteProvenance`, keys without the prefix; empty when the model carries none."""
    return {key.removeprefix(PREFIX): value for key, value in model.metadata_props.items() if key.startswith(PREFIX)}
