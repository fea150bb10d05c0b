"""Prediction of how a target will compute a file, node by node."""
