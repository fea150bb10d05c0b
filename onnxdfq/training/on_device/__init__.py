"""Packages with which a device goes on training a model: ONNX graphs, numbers, and a loop that needs ONNX Runtime."""
