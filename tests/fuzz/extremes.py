"""Values that lie where programs break."""

from typing import TypeVar

import numpy as np

from .verdict import FORGED

Value = TypeVar("Value")
Random = np.random.Generator

WHOLE = (
    0,
    1,
    2,
    3,
    -1,
    -2,
    5,
    7,
    255,
    256,
    1000,  # turns of a Loop: more are a slow model, and no fault
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
)
REAL = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-8, 1e8, 65520.0, 3.4e38, -3.4e38, float("inf"), float("-inf"), float("nan"))
NAMES = (
    "", " ", "x" * 300, "x" * 100_000, "a\nFORGED", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\r", "\0",
    "\x7f", "\x9b31m", "\u202eabc", "é", "名前", "\U0001f600", "a/b", "../a", "/etc/passwd", "a'b", 'a"b',
    "%s%n", "{0}", "[bold]", "a b", "-", "--help", ".", "..", "nan", "?", "ai.onnx", "com.microsoft", "Relu",
    "Conv", "image", "scores", "w", "0", f"{FORGED}: exit 0", "\ufeff", "\u2028", "CON", "a\\b", "$HOME",
    "`id`",
)  # fmt: skip


def whole(random: Random) -> int:
    """An extreme integer, or a small one."""
    return int(random.integers(-2, 12)) if random.random() < 0.3 else pick(random, WHOLE)


def real(random: Random) -> float:
    """An extreme float, or an ordinary one."""
    return float(random.normal()) if random.random() < 0.3 else pick(random, REAL)


def name(random: Random) -> str:
    """A name as no exporter would give one."""
    return pick(random, NAMES)


def pick(random: Random, values: tuple[Value, ...] | list[Value]) -> Value:
    """One of them."""
    return values[int(random.integers(len(values)))]


def chop(random: Random, data: bytes, times: int | None = None) -> bytes:
    """Bytes with a few faults: flipped, cut off, cut out, doubled, inserted."""
    changed = bytearray(data)
    for _ in range(times or int(random.integers(1, 4))):
        if not changed:
            break
        at, length = int(random.integers(len(changed))), int(random.integers(1, 64))
        match int(random.integers(6)):
            case 0:
                changed[at] ^= 1 << int(random.integers(8))
            case 1:
                changed[at] = pick(random, (0, 0x7F, 0x80, 0xFF))
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + length]
            case 4:
                changed[at:at] = changed[at : at + length]
            case 5:
                changed[at:at] = random.bytes(length)
    return bytes(changed)
