"""A service over a cluster that a test plays, with its dashboard and its app."""

import asyncio

import httpx

from cluster.api import build_app
from cluster.api.dashboard import Dashboard
from cluster.serving.findings import Finding
from cluster.settings import ApiSettings
from tests.support.fake_cluster import Client, FakeCluster, at_once, plan_of, service_of, settle, tokens_request
from tests.support.feeds import Feed


class Watched:
    """plan: None for a cluster without one; logs: a folder of log files. api: its settings. machine: what this machine finds of itself."""

    def __init__(self, prompts, *, plan="whole", logs=None, **api):
        self.cluster = FakeCluster(plan_of() if plan == "whole" else plan)
        self.service = service_of(prompts, self.cluster)
        self.machine = [Finding(verdict="ok", text="network: en0 10.0.0.2")]
        time = asyncio.get_running_loop().time
        self.dashboard = Dashboard(
            self.service,
            logs,
            clock=lambda: 1_700_000_000 + time(),
            run_in_thread=at_once,
            examine_machine=lambda: iter(self.machine),
        )
        self.stopping = asyncio.Event()
        self.running = asyncio.create_task(self.dashboard.run(self.stopping))
        self.app = build_app(self.service, ApiSettings(**api), dashboard=self.dashboard)

    async def feed(self, **headers):
        feed = Feed(self.app, tuple(headers.items()))
        await settle()
        return feed

    def ask(self, **fields):
        return Client(self.service, tokens_request(max_tokens=9, **fields))

    async def http(self, method, path, body=None, **headers):
        """The whole answer."""
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, json=body, headers=headers)


def watching(scenario):
    """Run it, and stop the server; nobody may be left."""

    async def whole(prompts, **options):
        watched = Watched(prompts, **options)
        await scenario(watched)
        watched.stopping.set()
        await watched.running
        await settle()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others

    return whole
