"""Images: how they are read, normalised and kept."""

from onnxdfq.images.images import Images

__all__ = ["Images"]
