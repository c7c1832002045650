"""A small HTTP client for streams of an OpenAI-compatible server, which keeps the time at which each piece arrived.

Knows as much of HTTP/1.1 as such servers need: bodies in chunks or up to the end of the connection, one request per
connection. Times are seconds of `time.perf_counter`.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

_CONNECT_TIMEOUT_S = 10.0
_HEALTH_EVERY_S = 0.2
_READ_BYTES = 1 << 16
NO_FIELDS: Mapping[str, Any] = {}


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A server and what to ask of it. end_tokens: ids that get a bias of -100, so that answers have full length.

    strategy: Tandem's field, sent only where given; chat: /v1/chat/completions instead of /v1/completions.
    """

    name: str
    url: str
    model: str
    strategy: str | None = None
    api_key: str | None = None
    end_tokens: tuple[int, ...] = ()
    chat: bool = False


class Answer(msgspec.Struct, kw_only=True):
    """What happened to one request. text_at: when each piece with text came; progress_at: Tandem's prefill reports;
    retry_after_s: when to come back, where the server refused it for now.
    """

    sent_at: float
    text_at: list[float] = []
    progress_at: list[tuple[float, int]] = []
    ended_at: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int = 0
    tandem: dict[str, Any] = {}
    error: str | None = None
    retry_after_s: int | None = None

    @property
    def ttft_s(self) -> float | None:
        return self.text_at[0] - self.sent_at if self.text_at else None

    @property
    def num_tokens(self) -> int:
        """Tokens as the server counts them; pieces of text where it does not say."""
        return len(self.text_at) if self.completion_tokens is None else self.completion_tokens


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    tandem: dict[str, Any] | None = None
    error: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode


async def stream(
    target: Target,
    prompt: str | Sequence[int],
    max_tokens: int,
    *,
    timeout_s: float = 600.0,
    into: Answer | None = None,
    fields: Mapping[str, Any] = NO_FIELDS,
) -> Answer:
    """One streamed request to its end. Never raises for what the server does: that is the answer's `error`.

    prompt: text, or token ids; into: an answer that fills while the stream runs, for a caller that will cancel it or
    watches it; fields: of the request's body, which win over what follows from target and defaults.
    """
    answer = Answer(sent_at=0.0) if into is None else into
    answer.sent_at = time.perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            await _exchange(target, _body(target, prompt, max_tokens, fields), answer)
    except (OSError, EOFError, ValueError, TimeoutError) as error:
        answer.error = str(error) or type(error).__name__
    answer.ended_at = answer.ended_at or time.perf_counter()
    return answer


def checked(answer: Answer) -> Answer:
    """An answer that ended well. Raises RuntimeError with its error."""
    if answer.error is not None:
        raise RuntimeError(answer.error)
    return answer


async def get_json(url: str, path: str, api_key: str | None = None) -> Any:
    """GET of a JSON document. Raises OSError and ValueError, the latter also for a status that is no success."""
    return await _json("GET", url, path, api_key)


async def post_json(url: str, path: str) -> Any:
    """POST with nothing to say; the JSON document that answers. Raises as `get_json`."""
    return await _json("POST", url, path, None)


async def _json(method: str, url: str, path: str, api_key: str | None) -> Any:
    async with asyncio.timeout(_CONNECT_TIMEOUT_S):
        reader, writer = await _connect(url)
        try:
            writer.write(_request(method, url, path, api_key, b""))
            raw = await reader.read(-1)
        finally:
            writer.close()
    head, _, rest = raw.partition(b"\r\n\r\n")
    response = _Head(head)
    body = response.body().feed(rest)
    if response.status // 100 != 2:
        raise ValueError(f"{url}{path} answers {response.status}")
    return msgspec.json.decode(body)


async def ask_health(url: str, waits: list[float]) -> None:
    """Ask `/health` until cancelled; the seconds of each answer go to `waits`, also where it is none or another than 200."""
    while True:
        asked_at = time.perf_counter()
        with contextlib.suppress(OSError, ValueError):
            await get_json(url, "/health")
        waits.append(time.perf_counter() - asked_at)
        await asyncio.sleep(_HEALTH_EVERY_S)


def _body(target: Target, prompt: str | Sequence[int], max_tokens: int, given: Mapping[str, Any]) -> bytes:
    fields: dict[str, Any] = {
        "model": target.model,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if target.chat:
        fields["messages"] = [{"role": "user", "content": prompt}]
    else:
        fields["prompt"] = prompt
    if target.strategy:
        fields["strategy"] = target.strategy
    if target.end_tokens:
        fields["logit_bias"] = {str(token): -100.0 for token in target.end_tokens}
    return msgspec.json.encode({**fields, **given})


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname or "127.0.0.1", parts.port or 80)


def _request(method: str, url: str, path: str, api_key: str | None, body: bytes) -> bytes:
    lines = [f"{method} {urlsplit(url).path.rstrip('/')}{path} HTTP/1.1", f"Host: {urlsplit(url).netloc}"]
    lines += ["Connection: close", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"Authorization: Bearer {api_key}"] if api_key else []
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _exchange(target: Target, body: bytes, answer: Answer) -> None:
    path = "/v1/chat/completions" if target.chat else "/v1/completions"
    reader, writer = await _connect(target.url)
    try:
        writer.write(_request("POST", target.url, path, target.api_key, body))
        head = _Head(await reader.readuntil(b"\r\n\r\n"))
        if head.status != 200:
            answer.retry_after_s = head.retry_after_s
            raise ValueError(f"status {head.status}: {(await reader.read(500)).decode(errors='replace')}")
        await _read_events(reader, head.body(), answer)
    finally:
        writer.close()


async def _read_events(reader: asyncio.StreamReader, body: "_Body", answer: Answer) -> None:
    events = _Lines()
    while data := await reader.read(_READ_BYTES):
        now = time.perf_counter()
        for line in events.feed(body.feed(data)):
            if line == b"data: [DONE]":
                answer.ended_at = now
                return
            _take(line, now, answer)
    raise EOFError("the stream ended without its end mark")


def _take(line: bytes, now: float, answer: Answer) -> None:
    if line.startswith(b": prefill "):
        answer.progress_at.append((now, int(line[10:].partition(b"/")[0])))
    if not line.startswith(b"data: "):
        return
    event = _decode_event(line[6:])
    if event.error is not None:
        raise ValueError(f"the server failed: {event.error}")
    for choice in event.choices:
        if choice.text or (choice.delta and choice.delta.content):
            answer.text_at.append(now)
    if event.usage is not None:
        answer.prompt_tokens = event.usage.prompt_tokens
        answer.completion_tokens = event.usage.completion_tokens
        details = event.usage.prompt_tokens_details
        answer.cached_tokens = (details.cached_tokens or 0) if details else 0
    if event.tandem is not None:
        answer.tandem = event.tandem


class _Head:
    """The status and headers of a response."""

    def __init__(self, raw: bytes):
        first, *lines = raw.rstrip(b"\r\n").split(b"\r\n")
        if not first:
            raise ValueError("the connection ended without a response")
        self.status = int(first.split()[1])
        pairs = (line.partition(b":") for line in lines)
        self._headers = {name.strip().lower(): value.strip().lower() for name, _, value in pairs}

    @property
    def retry_after_s(self) -> int | None:
        value = self._headers.get(b"retry-after", b"")
        return int(value) if value.isdigit() else None

    def body(self) -> "_Body":
        return _Body(chunked=b"chunked" in self._headers.get(b"transfer-encoding", b""))


class _Body:
    """Takes the pieces of a body in, gives the content out."""

    def __init__(self, *, chunked: bool):
        self._chunked = chunked
        self._raw = b""

    def feed(self, data: bytes) -> bytes:
        """The content that `data` completes. A chunk is given out when it is whole."""
        if not self._chunked:
            return data
        self._raw += data
        content = []
        while (end := self._raw.find(b"\r\n")) >= 0:
            size = int(self._raw[:end].partition(b";")[0] or b"0", 16)
            if len(self._raw) < end + 2 + size + 2:
                break
            content.append(self._raw[end + 2 : end + 2 + size])
            self._raw = self._raw[end + 2 + size + 2 :]
        return b"".join(content)


class _Lines:
    """Cuts a stream of bytes into its lines that are not empty."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return (line.rstrip(b"\r") for line in lines if line.strip())
