"""DGH (arXiv 2410.22110): images whose statistics, all together, are those that the model remembers."""
