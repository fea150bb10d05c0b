"""A share of the images of one synthesis, made by a run of its own: `3/8`."""

from dataclasses import dataclass
from typing import Self

from onnxdfq.errors import InputError
from onnxdfq.limits import Bounds

SHARDS = Bounds(least=1, most=10_000)


@dataclass(frozen=True)
class Shard:
    """number: from 1, of `count`. Raises InputError."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        SHARDS.check("shard", self.count)
        if not 1 <= self.number <= self.count:
            raise InputError(f"{self} is no shard: the first of {self.count} is 1/{self.count}.", field="shard")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def is_whole(self) -> bool:
        """Whether it is all there is."""
        return self.count == 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "3/8". Raises InputError."""
        number, slash, count = text.partition("/")
        if not (slash and all(part.isascii() and part.isdigit() and len(part) < 9 for part in (number, count))):
            raise InputError(f"{text!r} is no shard; give it as K/N, 3/8 for the third of eight.", field="shard")
        return cls(int(number), int(count))

    def part(self, units: int, what: str) -> slice:
        """Those of so many units that this shard has: all that lie together, and as many as any other, up to one.

        Args:
            units: How many there are.
            what: They are called, as several.

        Raises:
            InputError: There are fewer than shards.
        """
        if units < self.count:
            raise InputError(
                f"The images are made in {units} {what}, of which {self.count} shards cannot each have one; take fewer "
                "shards, more --images, or a smaller --batch-size.",
                field="shard",
            )
        return slice((self.number - 1) * units // self.count, self.number * units // self.count)


WHOLE = Shard()
