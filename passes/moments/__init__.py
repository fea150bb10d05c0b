"""Moments and distributions of activations from batch normalization alone, without data."""
