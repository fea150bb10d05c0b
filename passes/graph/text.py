"""Text out of a file, where people will look at it."""


def printable(text: str) -> str:
    """The text with each character that is none to look at as Python writes it: `\\x1b`, `\\u202e`, `\\u200b`.

    These are control characters, those that turn lines around or have no width, and separators other than a space: what
    could move a cursor, or make one name look like another. Letters of all languages stay.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
