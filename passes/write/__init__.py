"""Passes that write a quantized model in the form that a target reads."""
