"""Training as an ordinary ONNX graph: forward, loss, backward and optimizer, for runtimes that only know inference."""
