"""A name for each request, in `X-Request-Id`, and a line in the log when it has ended: who asked, what for, and what came of it.

Never what was said, and never a key. What only looks at the cluster and succeeds is asked every second, and has no line.
"""

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.api.failures import TALLY
from cluster.api.keys import CALLER, Caller
from cluster.serving.tally import Tally
from protocol.log_lines import fields
from protocol.logs import EACH

logger = logging.getLogger(__name__)

ID_HEADER = "X-Request-Id"
_ID_BYTES = ID_HEADER.lower().encode()
# A client's own: one word that a log and a header can hold.
_SANE_ID = re.compile(rb"[!-~]{1,128}")
_LOOKING = frozenset({"/", "/health", "/status", "/metrics"})
_LOOKING_FOLDER = "/dashboard/"
_MOST_CHARACTERS = 120


class RequestLog:
    """Puts a Tally into each request's scope, and writes what became of it. now: seconds of a monotonic clock."""

    def __init__(self, app: ASGIApp, now: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._now = now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, began_at, status = _request_id(scope), self._now(), None
        tally = scope[TALLY] = Tally()

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_ID_BYTES, request_id)]
            await send(message)

        try:
            await self._app(scope, receive, named)
        finally:
            if status is None or status >= 400 or not _only_looks(scope["path"]):
                _write(scope, request_id, status, tally, self._now() - began_at)


def _only_looks(path: str) -> bool:
    return path in _LOOKING or path.startswith(_LOOKING_FOLDER)


def _request_id(scope: Scope) -> bytes:
    given = dict(scope["headers"]).get(_ID_BYTES, b"")
    return given if _SANE_ID.fullmatch(given) else b"req_" + secrets.token_hex(12).encode()


def _write(scope: Scope, request_id: bytes, status: int | None, tally: Tally, took_s: float) -> None:
    """Lines of requests that took nothing are only counted where they are many: strangers send those."""
    found = dict(_described(scope, status, tally, took_s))
    named = {"request_id": request_id.decode()} | found
    line = " ".join([f"request {request_id.decode()}", *(f"{name}={_shown(value)}" for name, value in found.items())])
    logger.info("%s", line, extra=fields(named) | (EACH if tally.strategy is not None else {}))


def _shown(value: Any) -> Any:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else value


def _described(scope: Scope, status: int | None, tally: Tally, took_s: float) -> Iterator[tuple[str, Any]]:
    """What is known, by name. `ended`: left, where its client was gone before the answer was complete."""
    caller: Caller | None = scope.get(CALLER)
    if caller is not None and caller.name:
        yield "key", caller.name
    client = scope.get("client")
    yield "from", client[0] if client else None
    yield "asked", f"{scope['method']}:{_word(scope['path'])}"
    yield "status", status
    if tally.strategy is not None or status is None:
        yield "ended", "failed" if tally.error else "finished" if tally.is_finished else "left"
    if tally.error is not None:
        yield "error", tally.error.code
        if tally.error.param is not None:
            yield "field", _word(tally.error.param)
    if tally.strategy is not None:
        yield "strategy", tally.strategy
        yield "prompt_tokens", tally.prompt_tokens
        yield "completion_tokens", tally.completion_tokens
    for name, value in ("ttft_s", tally.ttft_s), ("tokens_per_s", tally.decode_tokens_per_s):
        if value is not None:
            yield name, value
    yield "took_s", took_s


def _word(text: str) -> str:
    """What a client wrote as one short word in ASCII."""
    shown = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
    return re.sub(r"[^!-~]", "_", shown)
