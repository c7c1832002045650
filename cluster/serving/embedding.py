"""Many texts at once as vectors: each is a sequence of its own that goes the way of every request, and its vector comes back.

Owns what belongs to all of them: their deadline, how many run at once, their order, and that one failure is that of all. Stateless
between requests. How a sequence gets its place and where it runs is that of any other.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec
import numpy as np

from cluster.serving.deadline import Deadline
from cluster.serving.encoding import Encoding
from cluster.serving.pooling import PoolingChoice
from cluster.serving.requests import (
    EmbeddingRequest,
    Embeddings,
    Event,
    Finished,
    GenerationRequest,
    Routed,
    TokensPrompt,
    Vector,
)
from protocol.errors import ApiError, BadRequest, ContextTooLong

# Texts of one request that run at once: enough for every stage to be at work, and few enough that others find places.
AT_ONCE = 16

Generate = Callable[[GenerationRequest], AsyncGenerator[Event, None]]


class _Embedded(msgspec.Struct, frozen=True):
    """What became of one text."""

    routed: Routed
    vector: Vector
    finished: Finished


class Embedder:
    """Embeds for one request. generate: runs one sequence; choice: how this model's vectors are made; context_tokens: None for a model
    without a limit; now: seconds of a monotonic clock.
    """

    def __init__(
        self,
        generate: Generate,
        encoding: Encoding,
        choice: PoolingChoice,
        context_tokens: int | None,
        now: Callable[[], float],
    ):
        self._generate = generate
        self._encoding = encoding
        self._choice = choice
        self._context_tokens = context_tokens
        self._now = now

    def __repr__(self) -> str:
        return f"Embedder({self._choice})"

    async def embed(self, request: EmbeddingRequest, timeout_s: float | None) -> Embeddings:
        """timeout_s: how long all of it may take.

        Raises:
            BadRequest: of a text, with the name of its field, or of the model; too many dimensions.
            RequestTimeout: it took longer.
            ApiError: what happened to one of the texts.
        """
        arrival = self._now()
        deadline = Deadline(arrival, timeout_s)
        try:
            async with asyncio.timeout(deadline.left_s(arrival)):
                sequences = await self._sequences(request)
                found = await self._all(sequences)
        except TimeoutError:
            raise deadline.error() from None
        vectors = tuple(
            _of_unit_length(one.vector, request.dimensions, field)
            for one, field in zip(found, request.fields, strict=True)
        )
        return Embeddings(vectors=vectors, routed=found[0].routed, finished=_together(found, self._now() - arrival))

    async def _sequences(self, request: EmbeddingRequest) -> list[GenerationRequest]:
        """Every text encoded, so that none runs where one cannot."""
        kind = self._choice.required(request.fields[0].partition("[")[0])
        sequences: list[GenerationRequest] = []
        for prompt, field in zip(request.prompts, request.fields, strict=True):
            asked = msgspec.structs.replace(request.asked, prompt=prompt, prompt_field=field, pooling=kind)
            tokens = await self._tokens(asked, is_cut=request.truncate)
            read = TokensPrompt(tokens)
            sequences.append(msgspec.structs.replace(asked, prompt=read, follows=bool(sequences)))
        return sequences

    async def _tokens(self, asked: GenerationRequest, *, is_cut: bool) -> tuple[int, ...]:
        """Of one text, no more than the context. is_cut: its beginning is enough."""
        limit = self._context_tokens
        tokens = await self._encoding.encode(asked, None if is_cut else limit)
        if limit is None or is_cut or len(tokens) <= limit:
            return tokens[:limit]
        field = asked.prompt_field
        raise ContextTooLong(
            f"{field} has {len(tokens)} tokens but the model's context is {limit} tokens; shorten it", param=field
        )

    async def _all(self, sequences: Sequence[GenerationRequest]) -> list[_Embedded]:
        """In order. The first failure is everybody's, and ends the others."""
        found: dict[int, _Embedded] = {}
        left = iter(enumerate(sequences))

        async def run() -> None:
            for place, sequence in left:
                try:
                    found[place] = await self._one(sequence)
                except ContextTooLong as error:  # for the memory of its caches, which only a shorter text needs less of
                    raise ContextTooLong(str(error), param=sequence.prompt_field) from None

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(AT_ONCE, len(sequences))):
                    group.create_task(run())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [found[place] for place in range(len(sequences))]

    async def _one(self, sequence: GenerationRequest) -> _Embedded:
        routed, vector = None, None
        async with contextlib.aclosing(self._generate(sequence)) as events:
            async for event in events:
                match event:
                    case Routed():
                        routed = event
                    case Vector():
                        vector = event
                    case Finished():
                        assert routed is not None
                        assert vector is not None
                        return _Embedded(routed, vector, event)
        raise EOFError("the service ended a request without Finished")


def _of_unit_length(vector: Vector, dimensions: int | None, field: str) -> bytes:
    """Its first numbers, made of length 1 in float32. Raises BadRequest where it has not so many."""
    values = np.frombuffer(vector.values, "<f4").astype(np.float64)
    if dimensions is not None and dimensions > len(values):
        raise BadRequest(f"this model's embeddings have {len(values)} dimensions; ask for no more", param="dimensions")
    values = values[:dimensions]
    if not np.isfinite(values).all():
        raise ApiError(f"the model computed what is no number for {field}; see ./launch.sh doctor --verify")
    length = float(np.linalg.norm(values))
    return (values / (length or 1.0)).astype("<f4").tobytes()


def _together(found: Sequence[_Embedded], total_s: float) -> Finished:
    """All of them as one answer. Where some went another way than the first, a note says so."""
    by_strategy = Counter(one.routed.strategy for one in found)
    notes = dict.fromkeys(note for one in found for note in one.finished.notes)
    others = [(strategy, count) for strategy, count in by_strategy.items() if strategy != found[0].routed.strategy]
    went = [f"{count} of {len(found)} texts ran by {strategy}" for strategy, count in others]
    return Finished(
        finish_reason="stop",
        token_ids=(),
        prompt_tokens=sum(one.finished.prompt_tokens for one in found),
        completion_tokens=0,
        resumed=sum(one.finished.resumed for one in found),
        notes=(*notes, *went),
        ttft_s=total_s,
        total_s=total_s,
        decode_tokens_per_s=None,
    )
