"""The command `onnxdfq`, and `python -m onnxdfq`."""

import sys

from onnxdfq.cli.interruption import tell_of_interruption
from onnxdfq.signals import raise_ending, raise_what_came


def main() -> None:
    """The command line, which Ctrl-C and its like end in one sentence also while it is imported."""
    raise_ending()
    try:
        from onnxdfq.cli.main import main as run

        raise_what_came()
        run()
    except KeyboardInterrupt:
        sys.exit(tell_of_interruption())


if __name__ == "__main__":
    main()
