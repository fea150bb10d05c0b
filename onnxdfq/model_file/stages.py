"""What is going on with a file, for sentences about it."""

READING = "reading it"
RUNNING = "running it in ONNX Runtime"
CONVERTING = "converting and simplifying it"
