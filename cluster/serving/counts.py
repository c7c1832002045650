"""How many requests there are and were, and how many tokens were read: the one owner of these numbers."""

import msgspec

from cluster.serving.lifecycle import RequestState
from cluster.serving.measures import Measures


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """running and waiting: now; the others since the start. resumed: how often a request went on after a loss."""

    running: int = 0
    waiting: int = 0
    finished: int = 0
    failed: int = 0
    resumed: int = 0


class ReuseCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Of all prompt tokens of cached strategies, how many needed no computing."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    hit_rate: float = 0.0


class GuessCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Of all next tokens that were guessed, how many came true. draft: who guesses: a model's name, or "lookup"; None where only what
    requests bring as a prediction is looked up, or nothing. acceptance: None before the first guess.
    """

    draft: str | None = None
    proposed: int = 0
    accepted: int = 0
    acceptance: float | None = None


class Counts:
    """Told of every move of every request; whoever shows numbers asks here."""

    def __init__(self) -> None:
        self._by_state = dict.fromkeys(RequestState, 0)
        self._num_arrived = 0
        self._num_resumed = 0
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0
        self.measures = Measures()

    def __repr__(self) -> str:
        return f"Counts({self.requests})"

    def arrived(self) -> int:
        """A request waits from now on. Gives its number, from 1, under which it is known everywhere."""
        self._by_state[RequestState.WAITING] += 1
        self._num_arrived += 1
        return self._num_arrived

    def moved(self, before: RequestState, after: RequestState) -> None:
        """A request went from one state to another."""
        self._by_state[before] -= 1
        self._by_state[after] += 1
        self._num_resumed += before is RequestState.REASSIGNED and after is RequestState.RUNNING

    def left(self, state: RequestState) -> None:
        """The client of a request in `state` went away, or it ended; what ended stays counted."""
        if state not in (RequestState.FINISHED, RequestState.FAILED):
            self._by_state[state] -= 1

    def read(self, prompt_tokens: int) -> None:
        """A prompt goes to a worker by a cached strategy."""
        self._num_prompt_tokens += prompt_tokens

    def reused(self, num_tokens: int) -> None:
        """So many tokens of a prompt were in the caches already."""
        self._num_cached_tokens += num_tokens

    @property
    def requests(self) -> RequestCounts:
        of = self._by_state
        return RequestCounts(
            running=of[RequestState.RUNNING],
            waiting=of[RequestState.WAITING] + of[RequestState.REASSIGNED] + of[RequestState.PAUSED],
            finished=of[RequestState.FINISHED],
            failed=of[RequestState.FAILED],
            resumed=self._num_resumed,
        )

    def guesses(self, draft: str | None) -> GuessCounts:
        """draft: who guesses now."""
        proposed, accepted = self.measures.proposed_tokens, self.measures.accepted_tokens
        share = round(accepted / proposed, 4) if proposed else None
        return GuessCounts(draft=draft, proposed=proposed, accepted=accepted, acceptance=share)

    @property
    def reuse(self) -> ReuseCounts:
        read, cached = self._num_prompt_tokens, self._num_cached_tokens
        return ReuseCounts(prompt_tokens=read, cached_tokens=cached, hit_rate=round(cached / read, 4) if read else 0.0)
