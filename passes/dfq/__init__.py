"""DFQ (arXiv 1906.04721): edits that even out channels."""
