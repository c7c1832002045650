"""An open dashboard in process: the events of its feed, read as they come."""

import asyncio
import json

from starlette.types import Scope


class Feed:
    """What a page of an app is sent. paused: its reader takes nothing."""

    def __init__(self, app, headers=(), path="/dashboard/feed", method="GET"):
        self.status = None
        self.headers = {}
        self.body = b""
        self.paused = False
        self.was_aborted = False
        self._readable = asyncio.Event()
        self._left = asyncio.Event()
        self.scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"localhost"), *((name.lower().encode(), value.encode()) for name, value in headers)],
            "client": ("127.0.0.1", 1),
            "tandem.abort": self._abort,
        }
        self.task = asyncio.create_task(app(self.scope, self._receive, self._send))

    async def _receive(self):
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        while self.paused:
            self._readable.clear()
            await self._readable.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message.get("body", b"")

    def _abort(self):
        self.was_aborted = True

    def read_on(self):
        self.paused = False
        self._readable.set()

    async def leave(self):
        self._left.set()
        await self.task

    @property
    def events(self):
        """All so far: (name, data)."""
        found = []
        for block in self.body.decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if lines:
                found.append((lines["event"], json.loads(lines["data"])))
        return found

    def of(self, name):
        return [data for told, data in self.events if told == name]
