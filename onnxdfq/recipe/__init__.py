"""What is asked for: names, bits, budgets. Nothing here loads torch."""

from onnxdfq.recipe.bits import Bits
from onnxdfq.recipe.recipe import Recipe

__all__ = ["Bits", "Recipe"]
