"""`python -m onnxdfq`, the same as the command `onnxdfq`."""

from onnxdfq.cli.main import main

if __name__ == "__main__":
    main()
