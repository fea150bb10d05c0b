"""The last word of a run that Ctrl-C, SIGTERM or SIGHUP ended."""

import signal
import sys
from contextlib import suppress

from onnxdfq.signals import came, ignore_ending, kept, written


def tell_of_interruption() -> int:
    """Says on stderr what was written, and returns the exit code: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
    ignore_ending()
    number = came[0] if came else signal.SIGINT
    by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    what = f"written by then: {', '.join(map(str, written))}" if written else "nothing was written"
    where = ", ".join(map(str, sorted(kept)))
    onwards = f"; {where} keeps how far it is, and the same command goes on from there" if kept else ""
    with suppress(OSError):  # a terminal that hung up takes no last words
        start = "\n" if sys.stderr.isatty() else ""  # behind ^C, or a bar of progress
        print(f"{start}onnxdfq: interrupted{by}; {what}{onwards}.", file=sys.stderr, flush=True)
    return 128 + number
