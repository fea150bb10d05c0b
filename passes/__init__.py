"""Graph passes: ONNX in, ONNX out. They need onnx, onnx-ir and numpy, and nothing else of this project."""
