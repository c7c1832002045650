"""Whether steps end: the answer that an HTTP server alone cannot give. `now` (seconds of one clock) is an argument.

Something is owed while sequences have tokens left to compute or requests wait for a plan. When nothing that was owed has
moved for `STALLED_AFTER_S`, the cluster is stalled, whatever its workers say of themselves.
"""

from collections.abc import Iterable

import msgspec

from cluster.membership.member import Member

STALLED_AFTER_S = 10.0


class Stall(msgspec.Struct, frozen=True, kw_only=True):
    """No step ended for `silent_s`. worker: the one that has been at one thing longest, for `oldest_step_s`; None where all
    are idle, so that what they should work on is lost.
    """

    silent_s: float
    worker: str | None
    oldest_step_s: float | None


class Health:
    """When a step ended last."""

    def __init__(self) -> None:
        self._step_at = float("-inf")

    def __repr__(self) -> str:
        return f"Health(last step at {self._step_at:.1f})"

    def step_ended(self, now: float) -> None:
        """A head reported what a step brought."""
        self._step_at = now

    def stall(self, members: Iterable[Member], owed_since: float | None, now: float) -> Stall | None:
        """Whether nothing moves. owed_since: since when something has been owed without a break, None when nothing is."""
        ready = [member for member in members if member.is_ready]
        if any(member.load.steps_per_s > 0 for member in ready):  # between its last two heartbeats
            self._step_at = now
        if owed_since is None or now - max(self._step_at, owed_since) < STALLED_AFTER_S:
            return None
        beats = [member.heartbeat for member in ready if member.heartbeat is not None]
        stuck = max(beats, key=lambda beat: beat.oldest_step_s or 0.0, default=None)
        at_work = stuck is not None and stuck.oldest_step_s is not None
        return Stall(
            silent_s=round(now - max(self._step_at, owed_since), 1),
            worker=stuck.worker if stuck is not None and at_work else None,
            oldest_step_s=stuck.oldest_step_s if stuck is not None and at_work else None,
        )
