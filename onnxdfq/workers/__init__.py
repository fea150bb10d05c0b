"""Several processes that do one run together, as torchrun starts them: the only module that knows torch.distributed.

What they do together gives the same bytes as one process alone: what is drawn is drawn by seed, batch and step, never
by rank, and what is added is added in the order of batches. Rank 0 writes and prints; the others are silent.
"""

from onnxdfq.workers.joining import is_other, joined, silence_others
from onnxdfq.workers.workers import ALONE, Released, Workers

__all__ = ["ALONE", "Released", "Workers", "is_other", "joined", "silence_others"]
