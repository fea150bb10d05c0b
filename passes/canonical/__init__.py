"""The canonical form of a float model, and folding of BatchNormalization."""
