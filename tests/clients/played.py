"""A model that plays what the prompt tells it to: Tandem's HTTP API, behind which no layer computes.

A user's message that holds `PLAY:` and a list of steps in base64 is its script: a text to say, or calls to make. Each answer is the
step after those that were played since that message. Without such a message it says who it is.
"""

import asyncio
import base64
import contextlib
import json
import re
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec

from cluster.api import bind, serve
from cluster.serving.requests import ChatPrompt, Delta, Event, GenerationRequest, ModelInfo, ToolCall
from tests.support.fake_service import FINISHED, ROUTED, FakeService, app_over

MODEL = ModelInfo(
    id="played",
    layers=8,
    bytes=1000,
    context_tokens=200_000,
    has_chat_template=True,
    created=1_700_000_000,
    abilities=("tools",),
)
_SCRIPT = re.compile(r"PLAY:([A-Za-z0-9_-]+=*)")
_UNASKED = "I am the played model."


class Played(FakeService):
    """Answers each request with its step."""

    def __init__(self) -> None:
        super().__init__(models=(MODEL,))

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        yield ROUTED
        step = next_step(request.prompt) if isinstance(request.prompt, ChatPrompt) else _UNASKED
        if isinstance(step, str):
            for piece in re.findall(r"\S*\s*", step):
                yield Delta(text=piece, token_ids=(5,))
            yield FINISHED
        else:
            calls = tuple(
                ToolCall(id=f"call_{number}", name=call["call"], arguments=json.dumps(call["arguments"]))
                for number, call in enumerate(step)
            )
            yield Delta(text="", token_ids=(5,), calls=calls)
            yield msgspec.structs.replace(FINISHED, finish_reason="tool_calls")


def next_step(prompt: ChatPrompt) -> Any:
    """A text, or a list of calls. Who offers no tools, as for a title, gets the last step, which is a text."""
    since = 0
    for message in reversed(prompt.messages):
        if message["role"] == "assistant":
            since += 1
        elif message["role"] == "user" and (found := _SCRIPT.search(message["content"])):
            steps = json.loads(base64.urlsafe_b64decode(found[1]))
            return steps[min(since, len(steps) - 1)] if prompt.tools else steps[-1]
    return _UNASKED


@contextlib.contextmanager
def played_model() -> Iterator[str]:
    """The address of the API before it, on a free port."""
    listener = bind("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    loop, stopping = asyncio.new_event_loop(), asyncio.Event()
    serving = serve(app_over(Played()), listener, stopping=stopping, grace_s=1)
    thread = threading.Thread(target=loop.run_until_complete, args=(serving,))
    thread.start()
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()
