"""What methods that invert a network share: taps, statistics, losses, priors, the optimiser."""
