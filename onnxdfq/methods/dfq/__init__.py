"""DFQ (arXiv 1906.04721): ranges and equalized channels from BatchNormalization alone."""
