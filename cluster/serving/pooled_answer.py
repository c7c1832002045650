"""The answer to a request whose prompt becomes one vector, as heads report it. What `Answer` is to generated text.

Owns nothing but what befell the request; over how many plans it runs, the vector comes once.
"""

from collections.abc import Iterable

from cluster.serving.answer import Report
from cluster.serving.requests import Event, Finished, Progress, Vector
from protocol.messages import PrefillProgress


class PooledAnswer:
    """arrival: when the request came."""

    token_ids: tuple[int, ...] = ()
    num_generated = 0
    cached_tokens = 0
    ttft_s: float | None = None
    decode_tokens_per_s: float | None = None
    lacks_prompt_scores = False

    def __init__(self, *, prompt_tokens: int, arrival: float):
        self.prompt_tokens = prompt_tokens
        self.arrival = self.last_at = arrival
        self._notes: list[str] = []
        self.is_finished = False
        self.resumed = 0

    def __repr__(self) -> str:
        return f"PooledAnswer({'finished' if self.is_finished else 'awaited'})"

    @property
    def finish_reason(self) -> str | None:
        return "stop" if self.is_finished else None

    def note(self, clause: str) -> None:
        """What else the client should know."""
        self._notes.append(clause)

    def go_on(self, note: str | None, *, was_lost: bool) -> None:
        """The vector will come from another sequence. note: for the client."""
        self.resumed += was_lost
        if note is not None:
            self._notes.append(note)

    def take(self, reports: Iterable[Report], now: float) -> list[Event]:
        """The events that `reports` amount to; behind the vector Finished."""
        events: list[Event] = []
        for report in reports:
            if isinstance(report, PrefillProgress):
                events.append(Progress(processed=report.processed, total=report.total))
            elif isinstance(report, Vector):
                self.is_finished = True
                events += [report, self._finished(now - self.last_at)]
        return events

    def _finished(self, seconds: float) -> Finished:
        return Finished(
            finish_reason="stop",
            token_ids=(),
            prompt_tokens=self.prompt_tokens,
            completion_tokens=0,
            resumed=self.resumed,
            notes=tuple(self._notes),
            ttft_s=seconds,
            total_s=seconds,
            decode_tokens_per_s=None,
        )
