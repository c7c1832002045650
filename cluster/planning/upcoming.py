"""The plan to come while another is in force: whom it waits for, and what would be a reason for it."""

from collections.abc import Mapping
from typing import Any

import msgspec

from strategy.measured_partition import Pace
from strategy.partition import Partition


class Upcoming(msgspec.Struct):
    """The plan that newcomers are being made ready for. preparing: who still reads; moves: links are to be chosen anew; judged: how
    fast everybody was when that was looked at last; is_paced: that is another now; again: what was in force, where
    nothing but a link of it broke.
    """

    newcomers: tuple[str, ...] = ()
    settled_at: float = 0.0
    partition: Partition | None = None
    preparing: frozenset[str] = frozenset()
    moves: bool = False
    judged: Mapping[str, Pace] = {}
    is_paced: bool = False
    again: Partition | None = None

    @property
    def kept(self) -> dict[str, Any]:
        """What holds whoever comes."""
        return {"moves": self.moves, "judged": self.judged, "is_paced": self.is_paced}
