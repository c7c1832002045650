"""Prompts become token ids off the event loop, and token ids text; a long one holds up no short one.

Each kind has a lane of its own, in which one is encoded at a time: a tokenizer is no use to two threads at once. Who leaves
while others of its lane are before it costs nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.serving.requests import LONG_CHARACTERS, GenerationRequest

if TYPE_CHECKING:  # see `answer`
    from cluster.serving.prompts import Prompts

RunInThread = Callable[..., Awaitable[Any]]


class Encoding:
    """run_in_thread: awaits a function that takes a while."""

    def __init__(self, prompts: "Prompts", run_in_thread: RunInThread):
        self._prompts = prompts
        self._run_in_thread = run_in_thread
        self._compiling = asyncio.Lock()
        self._lanes: dict[bool, asyncio.Lock] = {is_long: asyncio.Lock() for is_long in (False, True)}

    def __repr__(self) -> str:
        return f"Encoding({self._prompts})"

    async def encode(
        self, request: GenerationRequest, context_tokens: int | None, contexts: int = 1
    ) -> tuple[int, ...]:
        """The token ids of a request's prompt. See `Prompts.encode`, and for what it raises."""
        async with self._lanes[request.is_long]:
            tokens: tuple[int, ...] = await self._run_in_thread(self._prompts.encode, request, context_tokens, contexts)
            return tokens

    async def prepared(self, request: GenerationRequest, tokens: tuple[int, ...]) -> GenerationRequest:
        """See `Prompts.constrained` and `Prompts.predicted`."""
        if request.prediction:
            async with self._lanes[len(request.prediction) > LONG_CHARACTERS]:
                request = await self._run_in_thread(self._prompts.predicted, request)
        if request.structure is None:
            return request
        async with self._compiling:
            found: GenerationRequest = await self._run_in_thread(self._prompts.constrained, request, tokens)
            return found

    async def decode(self, tokens: tuple[int, ...]) -> str:
        """The text of token ids. Raises what `Prompts.decode` raises."""
        are_many = len(tokens) > LONG_CHARACTERS
        async with self._lanes[are_many]:
            text: str = await self._run_in_thread(partial(self._prompts.decode, tokens, are_many=are_many))
            return text
