"""Text that is no Markdown, and tables."""

import re
from collections.abc import Iterable, Sequence

CODE = re.compile(r"(``.*?``|`[^`]*`)")


def plain(text: str) -> str:
    """On one line, without a meaning to Markdown or HTML but for `code`."""
    parts = CODE.split(" ".join(text.split()))
    return "".join(part if number % 2 else _escaped(part) for number, part in enumerate(parts))


def code(text: str) -> str:
    """As code, in a cell of a table too."""
    return f"<code>{_escaped(text)}</code>" if text else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _escaped(text: str) -> str:
    return re.sub(r"[&<>*|`\[\]{}\\]|(?<!\w)_|_(?!\w)", lambda found: f"&#{ord(found[0])};", text)
