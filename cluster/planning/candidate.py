"""A worker that is there, as planning sees it."""

from typing import Self

import msgspec

from cluster.membership.member import Member
from protocol.values import LayerRange
from strategy.measured_partition import Pace


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that is there. held: layers whose weights it has; deaths: how often it died lately; pace: how fast it is, None where
    that was not measured.
    """

    name: str
    memory_limit_bytes: int
    layers: LayerRange | None = None
    held: tuple[LayerRange, ...] = ()
    deaths: int = 0
    pace: Pace | None = None

    @classmethod
    def of(cls, member: Member, deaths: int, pace: Pace | None = None, *, taken_bytes: int = 0) -> Self:
        """A member as planning sees it. taken_bytes: of its memory, what else than the model's weights and caches needs."""
        return cls(
            name=member.name,
            memory_limit_bytes=max(member.memory_limit_bytes - taken_bytes, 0),
            layers=member.manual_layers,
            held=member.held,
            deaths=deaths,
            pace=pace,
        )
