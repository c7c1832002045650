"""A server that plays the desk's feed to the page, as the API would: for a browser beside no cluster at all.

`python -m tests.dashboard.fake_feed PORT` serves it until it is ended.
"""

import asyncio
import json
import re
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.dashboard.desk import CACHED, Desk, reason

PAGE = Path(__file__).resolve().parents[2] / "cluster" / "api" / "dashboard" / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; object-src 'none'"
ANSWER = """A **KV cache** keeps the keys and values of the tokens that were read, so that each new token attends to them \
without computing them again.

- it grows with every token, by layer and head
- `single-device-cached` keeps it on one machine

```python
keys, values = cache.update(keys, values)
scores = queries @ keys.transpose()
```

Memory is what it costs: <b>bytes</b>, not time.
"""


def event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


class FakeFeed:
    """The paths that the page uses. key: what a visitor must send to act; everybody may look. is_cut: nobody gets the feed;
    pause_s: between two words of an answer.
    """

    def __init__(self, *, num_streams: int = 64, key: str | None = None) -> None:
        self._key = key
        self.desk = Desk(time.time(), num_streams=num_streams)
        self.is_cut = False
        self.pause_s = 0.01
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/dashboard/feed", self._feed),
                Route("/dashboard/{file}", self._page),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/explain", self._explain, methods=["POST"]),
                Route("/v1/requests/{request}", self._cancel, methods=["DELETE"]),
            ]
        )

    def _may_act(self, request: Request) -> bool:
        return self._key is None or request.headers.get("authorization") == f"Bearer {self._key}"

    async def _page(self, request: Request) -> Response:
        file = PAGE / request.path_params.get("file", "index.html")
        if not re.fullmatch(r"[\w-]+\.\w+", file.name) or not file.is_file():
            return Response(status_code=404)
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return Response(file.read_bytes(), media_type=TYPES[file.suffix], headers=headers)

    async def _feed(self, request: Request) -> Response:
        if self.is_cut:
            return Response(status_code=503)
        if "authorization" in request.headers and not self._may_act(request):
            return JSONResponse({"error": {"message": "this key is not known"}}, 401)
        return StreamingResponse(self._events(self._may_act(request)), media_type="text/event-stream")

    async def _events(self, may_act: bool) -> AsyncIterator[bytes]:
        desk, now = self.desk, time.time()
        said = {
            "may_act": may_act,
            "asks_for_key": self._key is not None,
            "now": now,
            "version": "1.2.0",
            "step_s": 5.0,
        }
        yield event("hello", said | {"history": desk.history(now)})
        yield event("status", desk.status(now))
        shown = desk.traffic.shown
        yield event("requests", {"requests": shown(desk.traffic.live), "ended": shown(list(desk.traffic.ended))})
        yield event("findings", {"findings": desk.findings()})
        if may_act:
            yield event("logs", {"lines": desk.log_lines(now)})
        ticks, lost, told = 0, desk.lost, now - now % 5
        while not self.is_cut:
            await asyncio.sleep(0.25)
            ticks += 1
            now = time.time()
            for worker, steps in desk.steps.until(now, [each["id"] for each in desk.traffic.live]):
                if worker not in desk.lost:
                    yield event("steps", {"worker": worker, "steps": steps, "clock_ahead_s": 0.0})
            if ticks % 4 == 0 or desk.lost != lost:
                lost = desk.lost
                yield event("status", desk.status(now))
            if ticks % 2 == 0:
                ended = desk.traffic.at(now)
                yield event("requests", {"requests": shown(desk.traffic.live), "ended": shown(ended)})
            if now - told >= 5:
                told += 5
                yield event("point", desk.point(told))

    async def _chat(self, request: Request) -> Response:
        if not self._may_act(request):
            return JSONResponse({"error": {"message": "A key is needed."}}, 401)
        body = await request.json()
        if body["messages"][-1]["content"] == "fail":
            return JSONResponse({"error": {"message": "The queue is full; try again in 2 s."}}, 429)
        return StreamingResponse(self._answer(body.get("strategy")), media_type="text/event-stream")

    async def _answer(self, strategy: str | None) -> AsyncIterator[bytes]:
        for word in re.findall(r"\S*\s+", ANSWER):
            await asyncio.sleep(self.pause_s)
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            yield f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
        strategy = strategy or CACHED
        about = {
            "strategy": strategy,
            "reason": reason(strategy, 2.6),
            "workers": ["studio-1", "studio-2"],
        }
        about |= {
            "ttft_s": 0.21,
            "decode_tokens_per_s": 31.4,
            "total_s": 2.6,
            "cached_tokens": 12,
            "resumed": 0,
            "notes": [],
        }
        usage = {"prompt_tokens": 21, "completion_tokens": 88, "total_tokens": 109}
        yield f"data: {json.dumps({'choices': [], 'usage': usage, 'tandem': about})}\n\n".encode()
        yield b"data: [DONE]\n\n"

    async def _explain(self, request: Request) -> Response:
        names = ("distributed-cached", "single-device-cached", "distributed-no-cache", "tensor-parallel")
        found = [
            {
                "strategy": name,
                "feasible": name != "tensor-parallel",
                "why_not": "no group of workers is configured" if name == "tensor-parallel" else None,
                "predicted_ttft_s": None if name == "tensor-parallel" else 0.2 * (index + 1),
                "predicted_total_s": None if name == "tensor-parallel" else 2.5 * (index + 1),
            }
            for index, name in enumerate(names)
        ]
        about = {"strategy": names[0], "reason": reason(CACHED, 2.6), "prompt_tokens": 21, "max_tokens": 512}
        return JSONResponse(about | {"candidates": found})

    async def _cancel(self, request: Request) -> Response:
        if not self._may_act(request):
            return JSONResponse({"error": {"message": "A key is needed."}}, 401)
        found = self.desk.traffic.cancel(request.path_params["request"])
        return JSONResponse({"cancelled": found}, 200 if found else 404)


class Server:
    """A fake feed on a thread of its own, on `port` or a free one, until `close`."""

    def __init__(self, feed: FakeFeed, port: int = 0) -> None:
        self.feed = feed
        config = uvicorn.Config(
            feed.app, host="127.0.0.1", port=port, log_level="critical", timeout_graceful_shutdown=0
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


if __name__ == "__main__":
    uvicorn.run(FakeFeed(key=sys.argv[2] if len(sys.argv) > 2 else None).app, port=int(sys.argv[1]))
