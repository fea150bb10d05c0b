"""From a float model to written files."""
