"""Grids, the values and weights of a graph that are quantized, and the plan with all numbers."""
