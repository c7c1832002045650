"""For which expected lengths a KV cache pays, from measured times. Pure; who measures and who stores is elsewhere."""

from collections.abc import Mapping

import msgspec


class PayingRange(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens to generate for which a cache is faster, both ends included; None leaves an end open. never: for none."""

    first: int | None = None
    last: int | None = None
    never: bool = False

    def contains(self, expected_tokens: int) -> bool:
        """Whether a cache pays for an answer of this many tokens."""
        if self.never:
            return False
        return (self.first is None or expected_tokens >= self.first) and (
            self.last is None or expected_tokens <= self.last
        )

    def __str__(self) -> str:
        if self.never or self.first is self.last is None:
            return "at no measured length" if self.never else "at every measured length"
        return f"{self.first or 'the shortest'} to {self.last or 'the longest'} tokens"


class MeasuredUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a measurement found for one model on one machine. machine: in words; distributed: where it was measured."""

    machine: str
    prompt_tokens: int
    single_device: PayingRange
    distributed: PayingRange | None = None


def paying_range(speedups: Mapping[int, float]) -> PayingRange:
    """The longest run of neighbouring measured lengths at which a cache is faster (speedup over 1).

    speedups: seconds without over seconds with a cache, by length. A run that reaches the shortest or the longest length
    measured is open there: what lies beyond was not measured and is taken to continue.
    """
    lengths = sorted(speedups)
    best: list[int] = []
    run: list[int] = []
    for length in lengths:
        run = [*run, length] if speedups[length] > 1 else []
        best = run if len(run) > len(best) else best
    if not best:
        return PayingRange(never=True)
    return PayingRange(
        first=None if best[0] == lengths[0] else best[0], last=None if best[-1] == lengths[-1] else best[-1]
    )
