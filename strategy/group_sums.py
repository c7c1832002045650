"""What the ranks of a group exchange for a token, what that takes, and which sums are too dear for a group to pay.

Ranks divide the work of one token, so of the time of one worker alone each saves 1 - 1/n at most; the sums, two a layer, cost some of
that again. Pure arithmetic.
"""

from collections.abc import Sequence

import msgspec

SUMS_PER_LAYER = 2


class GroupSums(msgspec.Struct, frozen=True, kw_only=True):
    """As the ranks timed them when they met. num_sums: exchanges for one token; row_bytes, row_s: what each rank adds to one of them, and
    what it takes; chunk_bytes, chunk_s: the same for a chunk of a prompt; transport: by which, why_not_wanted: a clause where another was.
    """

    num_sums: int
    row_bytes: int
    row_s: float
    chunk_bytes: int
    chunk_s: float
    transport: str = "tcp"
    why_not_wanted: str | None = None

    @property
    def token_s(self) -> float:
        """Of all sums for one token."""
        return self.num_sums * self.row_s

    @classmethod
    def of(cls, stages: Sequence["GroupSums"]) -> "GroupSums":
        """Those of all stages of a group; one of them as they are in the mean, and the transport of one where another was wanted."""
        num_sums = sum(stage.num_sums for stage in stages)
        told = next((stage for stage in stages if stage.why_not_wanted is not None), stages[0])
        return cls(
            num_sums=num_sums,
            row_bytes=max(stage.row_bytes for stage in stages),
            row_s=sum(stage.token_s for stage in stages) / num_sums,
            chunk_bytes=max(stage.chunk_bytes for stage in stages),
            chunk_s=sum(stage.num_sums * stage.chunk_s for stage in stages) / num_sums,
            transport=told.transport,
            why_not_wanted=told.why_not_wanted,
        )


def dearest_sum_s(alone_s: float, num_layers: int, ranks: int = 2) -> float:
    """A group saves nothing of a token where a sum takes longer. alone_s: what a token takes one worker."""
    return alone_s * (1 - 1 / ranks) / (SUMS_PER_LAYER * num_layers)
