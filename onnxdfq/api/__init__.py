"""The Python door: what the command line does, with arrays and objects as well as paths and names.

None means the default everywhere. Nothing heavy is imported before it is needed, so that wrong names and values are
refused at once.
"""

from onnxdfq.api.compressing import compress
from onnxdfq.api.distilling import distill
from onnxdfq.api.evaluating import compare_runtimes, evaluate
from onnxdfq.api.loading import load
from onnxdfq.api.merging import merge_images
from onnxdfq.api.pruning import prune
from onnxdfq.api.synthesizing import synthesize

__all__ = ["compare_runtimes", "compress", "distill", "evaluate", "load", "merge_images", "prune", "synthesize"]
