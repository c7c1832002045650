"""What a request costs on a route: time to the first token, and time for each one after it.

From measured times of stages (`StageSpeed`) and links (`Hop`), the work of one request and what else runs. Pure arithmetic, as
the heads schedule (`strategy.scheduling`, `strategy.chunking`):

* A prompt of m chunks over S stages is read in the sum of one chunk's times over all stages and links, and m - 1 times the
  slowest of them.
* Decoding sequences share batches, as many as there are stages; a token takes a step through all stages, or the busiest
  worker's round of all batches where that is longer.
* Without a KV cache each token reads everything before it again, one step after the other.
* Who reads a prompt while others decode lets each of their batches have a step for each chunk that is in flight, one a stage.
* Routes that share a worker hold each other up (`strategy.sharing`).
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import msgspec

from strategy.chunking import ChunkCost, ChunkSize
from strategy.scheduling import PADDING_SHARE, PADDING_TOKENS
from strategy.sharing import NOWHERE_BUSY, Busy
from strategy.stage_speed import Hop, StageArrays, StageSpeed
from strategy.vocabulary import Route

# Of more workers that are busy elsewhere all are calculated with at once.
_FEW = 6
# A token's id on its way back to the head.
_ID_BYTES = 200


class RouteCosts(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A route: its workers' stages, and the hop behind each; the last one leads back to the head. fixed_chunk_tokens, streams_wait: as of
    `ChunkSize`.
    """

    route: Route
    stages: tuple[StageSpeed, ...]
    hops: tuple[Hop, ...]
    fixed_chunk_tokens: int | None = None
    streams_wait: bool = False

    @cached_property
    def total(self) -> StageSpeed:
        """All stages as if they were one: what takes time on each takes the sum of it."""
        sizes = sorted({rows for stage in self.stages for rows, _ in stage.decode})
        return StageSpeed(
            decode=tuple((rows, sum(stage.decode_s(rows, 0) for stage in self.stages)) for rows in sizes),
            decode_context_s=sum(stage.decode_context_s for stage in self.stages),
            chunk=ChunkCost(
                sum(stage.chunk.fixed_s for stage in self.stages), sum(stage.chunk.token_s for stage in self.stages)
            ),
            chunk_context_s=sum(stage.chunk_context_s for stage in self.stages),
            payload_bytes=0,
        )

    @cached_property
    def slow(self) -> tuple[StageSpeed, ...]:
        """The stages among which the slowest one is, whatever is run: none that another one exceeds in everything."""
        found: list[StageSpeed] = []
        for stage in sorted(self.stages, key=lambda stage: stage.chunk.token_s, reverse=True):
            if not any(other.exceeds(stage) for other in found):
                found.append(stage)
        return tuple(found)

    @cached_property
    def every(self) -> StageArrays:
        """All stages, to be calculated with at once."""
        return StageArrays(self.stages)

    @cached_property
    def links(self) -> Hop:
        """All hops but the last as one, for what each stage passes on of a token."""
        forth = list(zip(self.stages[:-1], self.hops[:-1], strict=True)) if len(self.stages) > 1 else []
        token_s = sum(stage.payload_bytes / hop.bytes_per_s for stage, hop in forth)
        return Hop(sum(hop.latency_s for _, hop in forth), 1 / token_s if token_s else math.inf)

    @cached_property
    def back_s(self) -> float:
        """Of a token's id, from the last stage to the head."""
        return 0.0 if len(self.stages) == 1 else self.hops[-1].seconds(_ID_BYTES)

    def slowest_link_s(self, tokens: float) -> float:
        """Of a payload of so many tokens."""
        return max((latency_s + tokens * token_s for latency_s, token_s in self._slow_links), default=0.0)

    @cached_property
    def _slow_links(self) -> list[tuple[float, float]]:
        """Seconds for nothing, and for each token, of those hops among which the slowest one is, whatever goes over them."""
        forth = zip(self.stages[:-1], self.hops[:-1], strict=True) if len(self.stages) > 1 else ()
        links = {(hop.latency_s, stage.payload_bytes / hop.bytes_per_s) for stage, hop in forth}
        found: list[tuple[float, float]] = []
        for link in sorted(links, reverse=True):
            if all(token_s < link[1] for _, token_s in found):
                found.append(link)
        return found


class RouteLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What runs on a route: sequences that decode with a cache, prompts that are read and their tokens still to be, sequences without a
    cache, and the tokens before the next one of such, in the mean; longest: the most of one that decodes, where they differ.
    """

    decoding: int = 0
    reading: int = 0
    reading_tokens: int = 0
    uncached: int = 0
    context: float = 0.0
    longest: float = 0.0

    @property
    def padded(self) -> float:
        """How long a batch of those that decode is, for each of them."""
        return max(self.context, self.longest) if self.decoding else 0.0

    def joined(self, tokens: int, *, cached: bool, is_read: bool) -> "RouteLoad":
        """With one more sequence of so many tokens, none of which is computed. is_read: here; else it comes when others have read it."""
        change, context = msgspec.structs.replace, self.context or tokens
        if not cached:
            return change(self, uncached=self.uncached + 1, context=context)
        if is_read:
            left = self.reading_tokens + tokens - 1
            return change(self, reading=self.reading + 1, reading_tokens=left, context=context)
        context = (self.context * self.decoding + tokens) / (self.decoding + 1)
        return change(self, decoding=self.decoding + 1, context=context, longest=max(self.padded, tokens))

    def grown(self, tokens: float) -> "RouteLoad":
        """When each of those that decode has so many more."""
        if not self.decoding or not tokens:
            return self
        return msgspec.structs.replace(self, context=self.context + tokens, longest=self.padded + tokens)

    @property
    def when_read(self) -> "RouteLoad":
        """When all prompts are read, too."""
        if not self.reading:
            return self
        decoding, longest = self.decoding + self.reading, max(self.padded, self.context)
        return msgspec.structs.replace(self, decoding=decoding, reading=0, longest=longest)

    def takes(self, length: float, num_slots: int) -> bool:
        """Whether a batch of them takes one more of so many tokens."""
        members = self.decoding / min(self.decoding, num_slots)
        known = members * self.context + length
        return max(self.padded, length) * (members + 1) - known <= PADDING_SHARE * known + PADDING_TOKENS


class RequestWork(msgspec.Struct, frozen=True, kw_only=True):
    """A request: tokens of its prompt, those that the caches of the route have already, and tokens to be generated."""

    prompt_tokens: int
    cached_tokens: int = 0
    generated_tokens: int

    @property
    def read_tokens(self) -> int:
        """What is left to read before the last token of the prompt, whose step gives the first one of the answer."""
        return max(self.prompt_tokens - 1 - self.cached_tokens, 0)

    @property
    def mean_context(self) -> float:
        return self.prompt_tokens + self.generated_tokens / 2


class Times(msgspec.Struct, frozen=True):
    """Seconds: reading the prompt, the first token's step, and each further one's. chunk_tokens: in which the prompt is read."""

    read_s: float
    first_s: float
    step_s: float
    chunk_tokens: float = 0


def cached_times(costs: RouteCosts, work: RequestWork, load: RouteLoad, busy: Busy = NOWHERE_BUSY) -> Times:
    """With a KV cache on every stage."""
    read_s, size = _reading(costs, work, load, busy)
    others = load.grown(work.read_tokens / size if size else 0.0).when_read  # they have a step for each
    step_s, rows, context = _period_s(costs, others, work, busy)
    shorter = context - max(work.prompt_tokens, others.padded if rows > 1 else 0.0)
    first_s = max(step_s - rows * shorter * costs.total.decode_context_s, 0.0)
    return Times(read_s, first_s, step_s, size)


def uncached_times(costs: RouteCosts, work: RequestWork, load: RouteLoad, busy: Busy = NOWHERE_BUSY) -> Times:
    """Without a cache: each token is one step over everything before it; sequences take turns, one in each stage."""
    turns = 1 + load.uncached / len(costs.stages)

    def pass_s(tokens: float) -> float:
        through_s, _ = _through_and_slowest(costs, busy, [(1.0, lambda stage: stage.chunk_s(tokens, 0))])
        return through_s * turns + costs.links.seconds(tokens) + costs.back_s

    return Times(0.0, pass_s(work.prompt_tokens), pass_s(work.mean_context))


def handed_over_times(read: Times, alone: Times, work: RequestWork, handed: Hop) -> Times:
    """Read by all stages, generated by one worker with the full model. read, alone: with a cache on the one and on the other; handed:
    the way of the KV to the holder, in tokens.
    """
    read_s = handed_over_s(read.read_s, work.read_tokens, read.chunk_tokens, handed)
    return Times(read_s, alone.first_s, alone.step_s, read.chunk_tokens)


def handed_over_s(read_s: float, num_tokens: int, chunk_tokens: float, handed: Hop) -> float:
    """Seconds until what is read in `read_s` is at its holder: chunk by chunk, behind the reading."""
    return max(read_s, handed.seconds(num_tokens)) + handed.seconds(max(chunk_tokens, 1))


def batches(num_sequences: int, num_stages: int) -> tuple[int, int]:
    """Into how many batches decoding sequences go, and the rows of the largest."""
    num_slots = max(min(num_sequences, num_stages), 1)
    return num_slots, math.ceil(num_sequences / num_slots)


def chunk_tokens(costs: RouteCosts, work: RequestWork, load: RouteLoad) -> int:
    """The chunk that the head begins with, by the rules of `strategy.chunking`."""
    head = costs.stages[0]
    size = ChunkSize(
        num_stages=len(costs.stages),
        cost=head.chunk,
        fixed_tokens=costs.fixed_chunk_tokens,
        streams_wait=costs.streams_wait,
    )
    num_decoding = 0
    if load.decoding:
        num_decoding, rows = batches(load.decoding, len(costs.stages))
        size.observe_decode(head.decode_s(rows, load.context))
    return size.tokens(work.prompt_tokens - work.cached_tokens, work.cached_tokens, num_decoding=num_decoding)


def _reading(costs: RouteCosts, work: RequestWork, load: RouteLoad, busy: Busy) -> tuple[float, float]:
    """Seconds until all chunks are through, and the tokens of one.

    While it is read there is a chunk on each stage, and a batch of others goes through behind them: so between two chunks there
    are as many steps as batches for each stage. Others' prompts take turns with this one: of each at most as much is read.
    """
    num_tokens = work.read_tokens
    if not num_tokens:
        return 0.0, 0
    size = min(chunk_tokens(costs, work, load), num_tokens)
    num_chunks = num_tokens / size
    start = work.cached_tokens + (num_tokens - size) / 2
    steps: list[_Step] = [(1.0, lambda stage: stage.chunk_s(size, start))]
    if load.decoding:
        steps.append(_steps_between(costs, load))
    first_s, slowest_s = _through_and_slowest(costs, busy, steps)
    slowest_s = max(slowest_s, costs.slowest_link_s(size))
    others_s = min(load.reading_tokens / num_tokens, max(load.reading, 1)) * num_chunks * slowest_s
    read_s = first_s + costs.links.seconds(size) + (num_chunks - 1) * slowest_s + others_s
    return read_s, size


def _steps_between(costs: RouteCosts, load: RouteLoad) -> "_Step":
    """Of batches that decode, between two chunks."""
    num_stages = len(costs.stages)
    num_waiting, rows = batches(load.decoding, num_stages)
    met = num_stages - (num_waiting > 1)  # chunks on its way, but where another batch is
    return num_waiting / max(met, 1), lambda stage: stage.decode_s(rows, load.padded)


def _period_s(costs: RouteCosts, load: RouteLoad, work: RequestWork, busy: Busy) -> tuple[float, int, float]:
    """From one token of a further sequence, in the largest batch, to the next, in the mean; the rows of its batch, and how long that is.

    A batch is as long for all of its rows as for the longest; who goes with no other has one of its own.
    """
    num_stages, context = len(costs.stages), work.mean_context
    if load.decoding < num_stages or load.takes(work.prompt_tokens, num_stages):
        return _joined_s(costs, load, max(context, load.padded), busy)
    num_slots, rows = batches(load.decoding, num_stages)
    own: _Step = (1.0, lambda stage: stage.decode_s(1, context))
    through_s, _ = _through_and_slowest(costs, busy, [own])
    others: _Step = (num_slots, lambda stage: stage.decode_s(rows, load.padded))
    _, round_s = _through_and_slowest(costs, busy, [own, others])
    return max(through_s + costs.links.seconds(1) + costs.back_s, round_s), 1, context


def _joined_s(costs: RouteCosts, load: RouteLoad, context: float, busy: Busy) -> tuple[float, int, float]:
    num_sequences = load.decoding + 1
    num_slots, rows = batches(num_sequences, len(costs.stages))
    steps: list[_Step] = [(1.0, lambda stage: stage.decode_s(rows, context))]
    through_s, slowest_s = _through_and_slowest(costs, busy, steps, num_slots)
    round_s = num_slots * slowest_s
    if num_smaller := num_slots * rows - num_sequences:
        _, smaller_s = _through_and_slowest(costs, busy, [(1.0, lambda stage: stage.decode_s(rows - 1, context))])
        round_s -= num_smaller * (slowest_s - smaller_s)
    return max(through_s + costs.links.seconds(rows) + costs.back_s, round_s), rows, context


# How often, and what it takes of one stage, or of all at once.
_Step = tuple[float, Callable[[Any], Any]]


def _through_and_slowest(costs: RouteCosts, busy: Busy, steps: Sequence[_Step], number: int = 1) -> tuple[float, float]:
    """Of these steps all stages one after the other, and the slowest stage, where they follow each other without an end; with what
    workers do elsewhere meanwhile. number: of batches that go round.
    """
    if len(costs.stages) == 1:
        (stage,), there = costs.stages, busy.elsewhere.get(0)
        own = [(times, seconds(stage)) for times, seconds in steps]
        found = sum([times * (alone if there is None else alone + there.between_s(alone)) for times, alone in own])
        return found, found

    def own_s(stage: Any) -> Any:
        if len(steps) == 1:
            return steps[0][0] * steps[0][1](stage)
        return sum([times * seconds(stage) for times, seconds in steps])

    through_s, slowest_s = own_s(costs.total), max(map(own_s, costs.slow))
    if len(busy.elsewhere) > _FEW:
        everywhere = len(busy.elsewhere) == len(costs.stages)
        here = [(times, seconds(costs.every)[... if everywhere else busy.stages]) for times, seconds in steps]
        longer = [times * (alone + busy.between_s(alone)) for times, alone in here]
        slowest_s = max(slowest_s, float((longer[0] if len(longer) == 1 else sum(longer)).max()))
        return through_s + busy.wait_s, slowest_s
    wait_s, usual_s = 0.0, through_s + busy.wait_s
    for place, elsewhere in busy.elsewhere.items():
        each = [(times, seconds(costs.stages[place])) for times, seconds in steps]
        slowest_s = max(slowest_s, sum(times * (alone + elsewhere.between_s(alone)) for times, alone in each))
        away_s = (usual_s - elsewhere.wait_s()) / number - own_s(costs.stages[place])
        wait_s += elsewhere.wait_s(away_s)
    return through_s + wait_s, slowest_s
