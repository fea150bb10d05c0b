"""What a target will do with a file, node by node."""
