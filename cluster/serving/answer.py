"""One answer as it grows: what heads report of a request's sequences, turned into the events that the API sends.

Owns the token ids, the text and the times of one request, over every plan that it runs on; `now` (seconds of one clock) is an
argument. Knows nothing of workers or HTTP.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from cluster.serving.requests import Delta, Event, Finished, Progress, Scored, Vector
from cluster.serving.scores import Scores
from protocol.messages import PrefillProgress, PromptLogprobs, Reused, Update
from protocol.values import TokenLogprobs
from strategy.learning import ENOUGH_TOKENS

if TYPE_CHECKING:  # the tokenizer's library takes a second to import, and the coordinator loads it beside other things
    from cluster.serving.text_stream import TextStream

Report = Update | PrefillProgress | PromptLogprobs | Reused | Vector


@dataclass
class _Course:
    """How it came about, in the words of `Finished`."""

    cached_tokens: int = 0
    resumed: int = 0
    proposed: int = 0
    accepted: int = 0
    first_gaps_s: tuple[float, ...] = ()

    def came(self, num_tokens: int, seconds: float) -> None:
        """So many tokens, so long after those before."""
        if len(self.first_gaps_s) < ENOUGH_TOKENS:
            self.first_gaps_s += (seconds / num_tokens,)

    def cut(self, num_tokens: int) -> None:
        """The last tokens are not in the answer; as far as they were guessed, that was in vain."""
        self.accepted -= min(num_tokens, self.accepted)


class Answer:
    """stream: the detokenizer of this request; arrival: when the request came; scores: None where it wants no log probabilities;
    is_predicted: it brought a text to be guessed.
    num_generated: tokens, the end token included; cached_tokens: of the prompt, whose KV was already there.
    """

    def __init__(
        self,
        stream: "TextStream",
        *,
        prompt_tokens: int,
        arrival: float,
        scores: Scores | None = None,
        is_predicted: bool = False,
    ):
        self._stream = stream
        self._scores = scores
        self.prompt_tokens = prompt_tokens
        self.arrival = arrival
        self._first_at: float | None = None
        self._last_at = arrival
        self._token_ids: list[int] = []
        self.num_generated = 0
        self._course = _Course()
        self._is_predicted = is_predicted
        self._finish_reason: str | None = None
        self._notes: list[str] = []

    def __repr__(self) -> str:
        return f"Answer({len(self._token_ids)} tokens, {self._finish_reason})"

    @property
    def cached_tokens(self) -> int:
        return self._course.cached_tokens

    @property
    def resumed(self) -> int:
        return self._course.resumed

    @property
    def finish_reason(self) -> str | None:
        return self._finish_reason

    @property
    def is_finished(self) -> bool:
        return self._finish_reason is not None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """What was generated so far, without an end token."""
        return tuple(self._token_ids)

    @property
    def last_at(self) -> float:
        """When the newest token came; at first when the request did."""
        return self._last_at

    @property
    def lacks_prompt_scores(self) -> bool:
        """Whether log probabilities of the prompt's tokens are still to be told."""
        return self._scores is not None and self._scores.lacks_prompt

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the arrival to the first token; None before it."""
        return None if self._first_at is None else self._first_at - self.arrival

    @property
    def decode_tokens_per_s(self) -> float | None:
        """After the first token; None where all came at once."""
        decode_s = 0.0 if self._first_at is None else self._last_at - self._first_at
        return (self.num_generated - 1) / decode_s if self.num_generated > 1 and decode_s > 0 else None

    def note(self, clause: str) -> None:
        """What else the client should know."""
        self._notes.append(clause)

    def go_on(self, note: str | None, *, was_lost: bool) -> None:
        """Further reports come from another sequence, which began with the prompt and `token_ids`. note: for the client."""
        self._course.resumed += was_lost
        if note is not None:
            self._notes.append(note)

    def take(self, reports: Iterable[Report], now: float) -> list[Event]:
        """The events that `reports` amount to; several updates give one Delta. The last event may be Finished."""
        events: list[Event] = []
        tokens: list[int] = []
        logprobs: list[TokenLogprobs] = []
        reason: str | None = None
        for report in reports:
            if isinstance(report, Update):
                tokens += report.tokens
                self._course.proposed += report.proposed
                self._course.accepted += report.accepted
                logprobs += report.logprobs
                reason = reason or report.finish_reason
            elif not isinstance(report, Vector):
                events += self._read(report)
        if self._scores is not None and (told := self._scores.whole_prompt()) is not None:
            events.append(told)
        if tokens or reason:
            events += self._grow(tokens, logprobs, reason, now)
        return events

    def _read(self, report: PrefillProgress | PromptLogprobs | Reused) -> list[Event]:
        """The prompt is on its way."""
        match report:
            case PrefillProgress(processed=processed, total=total):
                return [Progress(processed=processed, total=total)]
            case Reused(num_tokens=num_tokens) if self._first_at is None:  # else it is no longer the prompt alone
                self._course.cached_tokens = num_tokens
            case PromptLogprobs() if self._scores is not None:
                self._scores.take_prompt(report)
        return []

    def _grow(self, tokens: list[int], logprobs: list[TokenLogprobs], reason: str | None, now: float) -> list[Event]:
        if self._scores is not None and self._scores.is_all:  # the token that ends the last step is nobody's
            tokens, reason = [], "length"
        if self._first_at is None:
            self._first_at = now
        elif tokens:
            self._course.came(len(tokens), now - self._last_at)
        self._last_at = now
        self.num_generated += len(tokens)
        scored = tokens
        if reason == "stop" and tokens:
            tokens = tokens[:-1]  # the end token is no text
        num_before = self._stream.num_tokens
        text, stopped = self._stream.push(tuple(tokens))
        if stopped:
            self._course.cut(self.num_generated - self._stream.num_tokens)
            self.num_generated = self._stream.num_tokens
            tokens = scored = tokens[: self.num_generated - num_before]
            reason = "stop"
        elif reason is not None:
            text += self._stream.finish()
            reason = "stop" if self._stream.stopped else reason
        self._token_ids += tokens
        self._finish_reason = reason
        scores = () if self._scores is None else self._scores.of_answer(scored, logprobs)
        events = self._told_apart(text, tuple(tokens), scores, is_last=reason is not None)
        return events if reason is None else [*events, self._finished(reason)]

    def _told_apart(
        self, text: str, tokens: tuple[int, ...], scores: tuple[Scored, ...], *, is_last: bool
    ) -> list[Event]:
        """As Deltas, of which the first has the tokens."""
        parts = self._stream.parts
        if parts is None:
            return [Delta(text=text, token_ids=tokens, scores=scores)] if text or tokens or scores else []
        found = [*parts.push(text), *(parts.finish() if is_last else ())]
        if not found:
            return [Delta(text="", token_ids=tokens, scores=scores)] if tokens or scores else []
        return [
            Delta(
                text=part.text,
                reasoning=part.reasoning,
                calls=part.calls,
                token_ids=() if place else tokens,
                scores=() if place else scores,
            )
            for place, part in enumerate(found)
        ]

    def _finished(self, reason: str) -> Finished:
        assert self.ttft_s is not None
        if reason == "stop" and self._stream.parts is not None and self._stream.parts.num_calls:
            reason = self._stream.parts.reason
        if self._is_predicted and not self._course.proposed:
            self._notes.append("prediction had no effect: nothing was guessed by it")
        return Finished(
            finish_reason=reason,
            token_ids=tuple(self._token_ids),
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.num_generated,
            **asdict(self._course),
            notes=tuple(self._notes),
            ttft_s=self.ttft_s,
            total_s=self._last_at - self.arrival,
            decode_tokens_per_s=self.decode_tokens_per_s,
        )
