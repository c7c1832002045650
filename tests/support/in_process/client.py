"""A client of the real API without a port: requests over httpx.ASGITransport, and what came back when."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx

_NUMBER = b"x-reply"


class Reply:
    """One request's answer as it comes. writes: each with its virtual time."""

    def __init__(self, loop, *, streams):
        self._loop = loop
        self._streams = streams
        self.writes = []
        self.status = None
        self.task = None

    def __repr__(self):
        return f"Reply({self.status}, {len(self.writes)} writes)"

    def note(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message.get("body"):
            self.writes.append((self._loop.time(), message["body"].decode()))

    @property
    def body(self):
        return "".join(text for _, text in self.writes)

    @property
    def events(self):
        """The JSON of every event, or of the whole answer."""
        if not self._streams:
            return [json.loads(self.body)]
        return [json.loads(line[6:]) for line in self.body.splitlines() if line.startswith("data: {")]

    @property
    def comments(self):
        """What streams say beside their events, each with its time."""
        return [(at, line[2:]) for at, text in self.writes for line in text.splitlines() if line.startswith(": ")]

    @property
    def num_pieces(self):
        """Writes with text in them, so far."""
        return sum('"text":' in text for _, text in self.writes)

    @property
    def text(self):
        return "".join(choice["text"] for event in self.events for choice in event.get("choices", ()))

    @property
    def error(self):
        """The sentence that it ended with, None where it did not."""
        return next((event["error"]["message"] for event in self.events if "error" in event), None)

    @property
    def is_complete(self):
        return self.body.endswith("data: [DONE]\n\n") if self._streams else self.status == 200

    @property
    def finish_reason(self):
        reasons = [choice["finish_reason"] for event in self.events for choice in event.get("choices", ())]
        return next(reason for reason in reasons if reason is not None)

    @property
    def tandem(self):
        return next(event["tandem"] for event in self.events if event.get("tandem"))

    @property
    def usage(self):
        return next(event["usage"] for event in self.events if event.get("usage"))

    @property
    def ids(self):
        return self.tandem["token_ids"]

    async def whole(self):
        """This, once the answer ended."""
        await self.task
        return self


class Client:
    """Over one app."""

    def __init__(self, app):
        self._app = app
        self._loop = asyncio.get_running_loop()
        self._replies = []
        transport = httpx.ASGITransport(app=self._noting)
        self._http = httpx.AsyncClient(transport=transport, base_url="http://localhost", trust_env=False, timeout=None)

    @asynccontextmanager
    async def opened(self):
        async with self._http:
            yield self

    async def _noting(self, scope, receive, send):
        number = dict(scope["headers"]).get(_NUMBER)

        async def noted(message):
            if number is not None:
                self._replies[int(number)].note(message)
            await send(message)

        await self._app(scope, receive, noted)

    def ask(self, prompt, max_tokens, *, stream=True, **fields):
        """Begin a completion of token ids; it goes on in the background. Cancel the reply's task to go away."""
        body = {"prompt": list(prompt), "max_tokens": max_tokens, "stream": stream, **fields}
        if stream:
            body["stream_options"] = {"include_usage": True}
        reply = Reply(self._loop, streams=stream)
        headers = {_NUMBER.decode(): str(len(self._replies))}
        self._replies.append(reply)
        reply.task = asyncio.create_task(self._http.post("/v1/completions", json=body, headers=headers))
        return reply

    async def answer(self, prompt, max_tokens, **fields):
        """A completion, once it ended."""
        return await self.ask(prompt, max_tokens, **fields).whole()

    async def status(self):
        return (await self._http.get("/status")).json()

    async def text(self, path):
        return (await self._http.get(path)).raise_for_status().text

    async def health(self):
        return (await self._http.get("/health")).json()
