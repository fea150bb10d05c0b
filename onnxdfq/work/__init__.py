"""What outlives a run that is broken off: checkpoints of stages, in a folder."""
