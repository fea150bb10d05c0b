"""Pruning: channels that go together and are removed, weights that become zero."""
