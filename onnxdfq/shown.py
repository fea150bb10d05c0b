"""Messages, as they are shown: what they quote may come from a stranger's file."""

import re
from collections.abc import Sequence

from passes.graph.text import printable

LONGEST_WORD, LONGEST_LINE = 200, 4000


def sentence(text: str) -> str:
    """A message in one line: nothing in it controls a terminal, and long names are cut in their middle."""
    words = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda found: shortened(found[0], LONGEST_WORD), text)
    return shortened(printable(words), LONGEST_LINE)


def some(names: Sequence[str], most: int) -> str:
    """The first few, and how many others there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def shortened(text: str, most: int) -> str:
    """The text, or so many characters of its ends."""
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 1]}…{text[-tail:]}"
