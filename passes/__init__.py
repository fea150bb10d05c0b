"""Graph passes: ONNX in, ONNX out. They need onnx, onnx-ir and numpy, and nothing else of this project."""

PART_OF = "onnxdfq"  # by which onnxdfq tells its own package from a folder of the user's that has the same name
