"""How long the next plan waits: for workers that may still come back, and when one plan after the other hardly lived; and what plans do
without, groups that did not meet.
"""

import math

import msgspec

from cluster.planning.unmet_groups import UnmetGroups

# A plan that broke so soon hardly lived; so many may do so in succession before the next one waits.
_HARDLY_S = 1.0
_MANY_HARDLY = 3
_LONGEST_REST_S = 60.0


class Patience(msgspec.Struct):
    """What the next plan waits for. returns_until: for missing workers that may still come back, after a restart;
    lives_since: of the plan in force, inf while none is; num_hardly: plans in succession that hardly lived; rests_until: because of those.
    """

    returns_until: float | None = None
    lives_since: float = -math.inf
    num_hardly: int = 0
    rests_until: float = -math.inf
    unmet: UnmetGroups = msgspec.field(default_factory=UnmetGroups)

    def awaits(self, now: float) -> bool:
        return self.returns_until is not None and now < self.returns_until

    def rests(self, now: float) -> bool:
        return now < self.rests_until

    def broke(self, now: float) -> None:
        """The plan in force did, or the one on its way."""
        self.num_hardly = self.num_hardly + 1 if now - self.lives_since < _HARDLY_S else 0
        excess = self.num_hardly - _MANY_HARDLY
        if excess >= 0:
            self.rests_until = now + min(2.0 ** min(excess, 16), _LONGEST_REST_S)

    def begin_anew(self, worker: str) -> None:
        """Others are there, since this one came or went."""
        self.num_hardly, self.rests_until = 0, -math.inf
        self.unmet.began_anew(worker)
