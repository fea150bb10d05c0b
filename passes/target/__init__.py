"""Targets: what a runtime demands of a file, as data."""
