"""The frozen plan: grids, points, and integers that no kernel saturates on."""
