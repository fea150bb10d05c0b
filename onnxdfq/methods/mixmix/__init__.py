"""MixMix (arXiv 2011.09899): images that several networks know, and DeepInversion, which it begins from."""
