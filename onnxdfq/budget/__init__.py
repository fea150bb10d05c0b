"""Mixed precision: what each layer costs, how sensitive the outputs are to it, and the best widths under a budget."""

from onnxdfq.budget.choice import BitChoices, MixedBits, bit_choices, check_budget
from onnxdfq.recipe.budget import Budget

__all__ = ["BitChoices", "Budget", "MixedBits", "bit_choices", "check_budget"]
