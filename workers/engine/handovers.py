"""Requests of this worker whose prompts the stages of a pipeline read, until all of a prompt is handed over.

Owns what has arrived; what it is made of only who opens a sequence knows. The rules:

1. What is kept here of a prompt's beginning is not read again. Where little is left, this worker reads it alone; so it does
   where so little is kept there that the stages together would take longer, which their head knows.
2. The parts of one stage follow each other without a gap, up to the prompt's last token, and have the same bounds on all.
3. Once all stages have handed over all of it, the request begins as one whose prompt was found among the kept prefixes.
4. Whatever goes wrong before that, the request begins alone, and the pipeline is told to stop.

Knows nothing of sockets, MLX or the clock.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

from protocol.messages import Generate, HandedOver, ReadingFailed, ReadPrompt, StopReading
from protocol.values import pack_ids
from strategy.prefix import BLOCK_TOKENS, Match
from workers.engine.actions import Action, Tell
from workers.engine.fitness import UnfitMessage
from workers.engine.head import Head

log = logging.getLogger(__name__)

# A prompt of which less is new is read alone: handing it over would take longer.
LEAST_TOKENS = BLOCK_TOKENS


@dataclass(frozen=True)
class _Part:
    start: int
    end: int
    content: Any


@dataclass
class _Awaited:
    """A request whose prompt is being read. match: what of it is kept here."""

    head: Head
    request: Generate
    prompt: list[int]
    match: Match
    parts: dict[str, list[_Part]] = field(default_factory=dict)

    def take(self, message: HandedOver, content: Any) -> None:
        """Raises UnfitMessage for what does not follow."""
        of_stage = self.parts.setdefault(message.worker, [])
        start = of_stage[-1].end if of_stage else self.match.num_tokens
        if message.route != self.request.read_by or message.start != start or message.end > len(self.prompt) - 1:
            raise UnfitMessage(f"tokens {message.start} to {message.end} of {message.worker} do not follow on {start}")
        of_stage.append(_Part(message.start, message.end, content))

    @property
    def is_whole(self) -> bool:
        ends = [of_stage[-1].end for of_stage in self.parts.values() if of_stage]
        assert self.request.read_by is not None
        return len(ends) == len(self.request.read_by) and min(ends) == len(self.prompt) - 1

    def spans(self) -> list[tuple[Any, ...]]:
        """By span, what each stage has of it. Raises UnfitMessage where the stages cut differently."""
        bounds = {tuple((part.start, part.end) for part in of_stage) for of_stage in self.parts.values()}
        if len(bounds) > 1:
            raise UnfitMessage("the stages handed over different spans")
        return [tuple(part.content for part in parts) for parts in zip(*self.parts.values(), strict=True)]


class Handovers:
    """See the module. name: this worker's."""

    def __init__(self, name: str):
        self._name = name
        self._awaited: dict[int, _Awaited] = {}  # by the coordinator's number

    def __repr__(self) -> str:
        return f"Handovers({len(self)} awaited)"

    def __len__(self) -> int:
        return len(self._awaited)

    def clear(self) -> None:
        """Nothing that is awaited will come."""
        self._awaited.clear()

    def begin(self, head: Head, request: Generate, prompt: list[int]) -> list[Action]:
        """A request that the stages of its `read_by` read, for the head of this worker's own route."""
        if request.sequence in self._awaited:
            raise UnfitMessage(f"the prompt of sequence {request.sequence} is already being read")
        match = head.match(request, prompt)
        if request.read_by is None or len(prompt) - 1 - match.num_tokens < LEAST_TOKENS:
            return head.begin_with(match, request, prompt)
        self._awaited[request.sequence] = _Awaited(head, request, prompt, match)
        reading = ReadPrompt(
            sequence=request.sequence,
            request_id=request.request_id,
            route=request.read_by,
            holder=self._name,
            start=match.num_tokens,
            scope=request.scope,
            client=request.client,
        )
        return [Tell(request.read_by.head, reading, (pack_ids(prompt),))]

    def handed_over(self, message: HandedOver, content: Any) -> list[Action]:
        """A stage has more of a prompt. Raises UnfitMessage where it does not fit what came before."""
        awaited = self._awaited.get(message.sequence)
        if awaited is None:
            return []
        awaited.take(message, content)
        if not awaited.is_whole:
            return []
        spans = awaited.spans()
        del self._awaited[message.sequence]
        return awaited.head.begin_handed(awaited.match, awaited.request, awaited.prompt, spans)

    def failed(self, message: ReadingFailed) -> list[Action]:
        """What is awaited will not be whole."""
        awaited = self._awaited.pop(message.sequence, None)
        if awaited is None:
            return []
        log.info("reads the prompt of sequence %d alone: %s", message.sequence, message.message)
        alone = awaited.head.begin_with(awaited.match, awaited.request, awaited.prompt)
        return [*self._stop(awaited.request), *alone]

    def cancel(self, sequence: int) -> list[Action]:
        """Forget a request by the coordinator's number. Unknown ones are ignored."""
        awaited = self._awaited.pop(sequence, None)
        if awaited is None:
            return []
        awaited.head.release(awaited.match)
        return self._stop(awaited.request)

    def _stop(self, request: Generate) -> list[Action]:
        assert request.read_by is not None
        return [Tell(request.read_by.head, StopReading(sequence=request.sequence, route=request.read_by))]
