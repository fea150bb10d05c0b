"""Padding that `auto_pad` SAME comes to."""

from collections.abc import Iterable

Axis = tuple[int, int, int, int, int]
"""Along one spatial axis: size of what is padded and of what comes out, kernel, stride, dilation."""


def same_pads(axes: Iterable[Axis], *, upper: bool) -> tuple[int, ...]:
    """As the attribute `pads` has them: all begins, then all ends. upper: the odd one goes to the end."""
    totals = [
        max((outputs - 1) * stride + (window - 1) * dilation + 1 - size, 0)
        for size, outputs, window, stride, dilation in axes
    ]
    less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
    return (*less, *more) if upper else (*more, *less)
