"""A Service whose answers a test writes down, and ways to ask the app over it in process."""

import asyncio
import json
from array import array
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

import httpx
import msgspec
from starlette.applications import Starlette

from cluster.api import build_app
from cluster.serving.counts import Counts
from cluster.serving.ledger import Ledger
from cluster.serving.requests import (
    ChatPrompt,
    Delta,
    EmbeddingRequest,
    Embeddings,
    Event,
    Explanation,
    Finished,
    GenerationRequest,
    ModelInfo,
    Progress,
    Routed,
    Service,
    TextPrompt,
    TokensPrompt,
)
from cluster.serving.status import HealthReport, HostModels, WorkerFigures
from cluster.serving.tally import Tally
from cluster.settings import ApiSettings
from protocol.errors import ApiError, BadRequest

MODEL = ModelInfo(id="tiny", layers=8, bytes=1000, context_tokens=512, has_chat_template=True, created=1_700_000_000)
ROUTED = Routed(
    request_id="r1", strategy="distributed-no-cache", reason="short", workers=("alpha", "beta"), prompt_tokens=7
)
FINISHED = Finished(
    finish_reason="stop",
    token_ids=(5, 6),
    prompt_tokens=7,
    completion_tokens=3,
    cached_tokens=4,
    resumed=1,
    notes=("the seed had no effect",),
    ttft_s=0.25,
    total_s=0.75,
    decode_tokens_per_s=40.0,
)
EXPLANATION = Explanation(strategy="single-device-cached", reason="long", prompt_tokens=7, max_tokens=5, candidates=())
ANSWER: tuple[Event | Exception, ...] = (
    ROUTED,
    Progress(processed=4, total=7),
    Delta(text="Hello", token_ids=(5,)),
    Delta(text="", token_ids=()),
    Delta(text=' "wörld"\n', token_ids=(6,)),
    FINISHED,
)


class ToldAnswer:
    """What a tally knows of an answer that a script plays."""

    def __init__(self):
        self.prompt_tokens = self.num_generated = 0
        self.ttft_s = self.decode_tokens_per_s = None
        self.is_finished = False

    def follow(self, item: Any, tally: Tally | None) -> None:
        if isinstance(item, Routed) and tally is not None:
            self.prompt_tokens = item.prompt_tokens
            tally.began(self, item.strategy)
        elif isinstance(item, Delta):
            self.num_generated += len(item.token_ids)
        elif isinstance(item, Finished):
            self.num_generated, self.is_finished = item.completion_tokens, True
            self.ttft_s, self.decode_tokens_per_s = item.ttft_s, item.decode_tokens_per_s
        elif isinstance(item, ApiError) and tally is not None:
            tally.error = item


class FakeService:
    """Plays `script`: events are yielded, exceptions raised, and Ellipsis waits for ever."""

    def __init__(self, *script: Any, state: str = "ready", models: tuple[ModelInfo, ...] = (MODEL,)):
        self.script = script or ANSWER
        self.requests: list[GenerationRequest] = []
        self.forgotten: list[str] = []
        self.waiting = asyncio.Event()
        self.closed = asyncio.Event()
        self._state = state
        self._models = models
        self._ledger = Ledger(Counts(), lambda: (), now=lambda: 0.0)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Event]:
        self.requests.append(request)
        told = ToldAnswer()
        try:
            for item in self.script:
                told.follow(item, getattr(request, "tally", None))
                if isinstance(item, BaseException):
                    raise item
                if item is ...:
                    self.waiting.set()
                    await asyncio.Event().wait()
                yield item
        finally:
            self.closed.set()

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """(0.6, 0.8) for each text; the script's first where that is an exception, or Ellipsis."""
        self.requests.append(request)
        try:
            if isinstance(self.script[0], BaseException):
                raise self.script[0]
            if self.script[0] is ...:
                self.waiting.set()
                await asyncio.Event().wait()
        finally:
            self.closed.set()
        vector = array("f", (0.6, 0.8)).tobytes()
        finished = msgspec.structs.replace(FINISHED, completion_tokens=0, token_ids=())
        return Embeddings(vectors=(vector,) * len(request.prompts), routed=ROUTED, finished=finished)

    async def explain(self, request: GenerationRequest) -> Explanation:
        self.requests.append(request)
        return EXPLANATION

    async def encode(self, request: GenerationRequest) -> tuple[int, ...]:
        """The text's bytes, the messages' without what is between them; a 1 comes before what is not bare."""
        self.requests.append(request)
        match request.prompt:
            case TextPrompt(text=text, bare=bare):
                return (*(() if bare else (1,)), *text.encode())
            case ChatPrompt(messages=messages):
                return (1, *"".join(message["content"] for message in messages).encode())
            case TokensPrompt(tokens=tokens):
                return tokens

    async def decode(self, tokens: tuple[int, ...]) -> str:
        if max(tokens, default=0) > 255:
            raise BadRequest("there are 256 bytes", param="tokens")
        return bytes(tokens).decode()

    def forget_conversation(self, conversation: str) -> None:
        self.forgotten.append(conversation)

    def cancel(self, request_id: str) -> None:
        self._ledger.find(request_id)

    def ledger(self) -> Ledger:
        return self._ledger

    def watch_steps(self, hear):
        return nullcontext()

    def mend(self) -> tuple[str, ...]:
        return ("beta",)

    def status(self) -> dict:
        return {"state": self._state, "workers": []}

    def health(self) -> HealthReport:
        return HealthReport(state=self._state)

    async def models_elsewhere(self) -> tuple[HostModels, ...]:
        return (HostModels(name="mac2", models=None),)

    async def figures(self) -> tuple[WorkerFigures, ...]:
        return (WorkerFigures(name="alpha", stages=None),)

    def models(self) -> tuple[ModelInfo, ...]:
        return self._models


def app_over(service: Service, **options: Any) -> Starlette:
    """The app. options: of `build_app`, and settings of the API by their names."""
    api = {name: options.pop(name) for name in list(options) if name in ApiSettings.__struct_fields__}
    return build_app(service, ApiSettings(**api), **options)


def ask(
    service: FakeService,
    method: str,
    path: str,
    body: Any = None,
    *,
    content: Any = None,
    headers: dict[str, str] | None = None,
    **app_options: Any,
) -> httpx.Response:
    """One request to the app in process. `body` goes as JSON; `content` as it is."""
    if body is not None:
        content = json.dumps(body).encode()

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app_over(service, **app_options))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(run())


def chat(service: FakeService, *, app: dict[str, Any] | None = None, **fields: Any) -> httpx.Response:
    """app: what the app is built with."""
    body = {"messages": [{"role": "user", "content": "hi"}]} | fields
    return ask(service, "POST", "/v1/chat/completions", body, **(app or {}))


def completion(service: FakeService, *, app: dict[str, Any] | None = None, **fields: Any) -> httpx.Response:
    """app: what the app is built with."""
    return ask(service, "POST", "/v1/completions", {"prompt": "hi"} | fields, **(app or {}))


def sse_events(text: str) -> list[dict[str, Any]]:
    """The JSON events of a stream, without comments and end mark."""
    lines = [block.removeprefix("data: ") for block in text.split("\n\n") if block.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]
