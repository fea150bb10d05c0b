"""DF-MPC (arXiv 2307.00498): low-bit weights compensated in closed form; its half on ONNX is `passes.dfmpc`."""
