"""Pruning of float networks, and its repair: by moments in closed form, by least squares on images."""
