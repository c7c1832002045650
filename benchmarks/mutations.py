"""Hundreds of thousands of wrong messages and requests beside a client that is served: does anybody notice?

Messages go to every port on which a process of the cluster listens, from a stranger and with the keys of workers and
of the coordinator; questions, as for pieces of a model, go there from the stranger and the workers. Each has something wrong: a
field, a buffer, a frame, an epoch, some bytes.
With `--hosts` the cluster is one over hosts in namespaces, with a worker on each: requests come on the coordinator's host, messages
from another one, with the keys of all workers but that of the coordinator's host, to the addresses that are reached from there.
Left out is what its sender may say by right: a coordinator may end a worker, and a worker may say that it failed, or its link.
What is kept of past requests is limited to little: it grows to its limit by design. Requests go to the API over
connections of their own. Meanwhile one client streams answer after answer, and `/health` is asked.
"""

import argparse
import asyncio
import random
from collections import Counter
from contextlib import AbstractAsyncContextManager
from typing import Any

from benchmarks.support import machine
from benchmarks.support.client import checked
from benchmarks.support.contenders import Cluster, WorkerLimits, cluster
from benchmarks.support.inside import answering, inside, send_messages
from benchmarks.support.main import main
from benchmarks.support.mutation import mutated_request
from benchmarks.support.over_hosts import over_hosts
from benchmarks.support.reporting import Report
from benchmarks.support.resources import sample
from benchmarks.support.served import Served, add_answers, add_use
from benchmarks.support.trials import until_ready
from cluster.config import BUNDLED_MODEL
from tests.hosts.host import NAMES

MODEL = machine.CHECKOUT / BUNDLED_MODEL
KEPT_BYTES = 4 << 20
_CONNECTIONS = 16
_ANSWER_WITHIN_S = 10.0
_SETTLE_S = 15.0


def _requests() -> list[tuple[str, Any]]:
    messages = [{"role": "user", "content": "Hello"}]
    sampling = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "logit_bias": {"5": 1.0}, "stop": ["x"]}
    return [
        ("/v1/completions", {"prompt": "Hello", "max_tokens": 2, **sampling}),
        ("/v1/completions", {"prompt": [20, 21], "max_tokens": 2, "stream": True}),
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 2, **sampling}),
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 2, "stream": True, "conversation": "c"}),
        ("/v1/explain", {"prompt": "Hello", "max_tokens": 2}),
        ("/v1/models", None),
        ("/health", None),
        ("/status", None),
    ]


async def send_requests(url: str, count: int, generator: random.Random) -> Counter[str]:
    """So many wrong requests, some at a time; the statuses of the answers."""
    statuses: Counter[str] = Counter()
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            path, body = generator.choice(_requests())
            statuses[await _status(url, mutated_request(path, body, generator))] += 1

    await asyncio.gather(*(client() for _ in range(_CONNECTIONS)))
    return statuses


async def _status(url: str, request: bytes) -> str:
    """What the server says first. Only the beginning is waited for; an incomplete request is ended."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            writer.write(request)
            writer.write_eof()
            line = await reader.readline()
        return line[9:12].decode(errors="replace") if line else "closed"
    except TimeoutError:
        return "silent"
    except OSError:
        return "closed"
    finally:
        writer.close()


def _attacked(arguments: argparse.Namespace) -> AbstractAsyncContextManager[Cluster]:
    if arguments.hosts:
        return over_hosts(arguments.hosts, BUNDLED_MODEL, kept_bytes=KEPT_BYTES)
    return cluster(MODEL, [WorkerLimits()] * arguments.workers, kept_bytes=KEPT_BYTES)


async def run(arguments: argparse.Namespace) -> Report:
    """Both attacks on one cluster. Raises TandemError where there are to be hosts and this machine cannot make them."""
    generator = random.Random(arguments.seed)
    num_workers = arguments.hosts or arguments.workers
    async with _attacked(arguments) as running:
        await until_ready(running, num_workers)
        served = Served(running)
        right = checked(await served.one()).tandem["token_ids"]
        alone = [checked(await served.one()) for _ in range(arguments.answers)]
        # What is kept for later use is there before anything is counted.
        await send_messages(await inside(running), arguments.messages // 10, generator)
        await send_requests(running.url, arguments.requests // 10, generator)
        before = sample(running.places, 0)
        async with served.meanwhile():
            known = await inside(running)
            sent = await send_messages(known, arguments.messages, generator)
            print(f"{sent} messages sent", flush=True)
            statuses = await send_requests(running.url, arguments.requests, generator)
            print(f"requests: {statuses}", flush=True)
        await asyncio.sleep(_SETTLE_S)
        after = sample(running.places, 1)
        status = await until_ready(running, num_workers)
        answered = await answering(await inside(running))
    report = Report("mutations")
    report.fact("machine", machine.describe())
    report.fact(
        "cluster", f"{num_workers} workers, {'each on a host of its own' if arguments.hosts else 'on one host'}"
    )
    report.fact("sent", f"{sent} messages, {sum(statuses.values())} requests, seed {arguments.seed}")
    report.fact("plans", f"{known.epoch & 0xFFFFFFFF} before, {status['epoch'] & 0xFFFFFFFF} until the end")
    report.table("answers to requests", ["status", "number"], [list(pair) for pair in sorted(statuses.items())])
    add_use(report, before, after)
    add_answers(report, served, right, alone)
    report.check("requests that are not answered", statuses["silent"] + statuses["500"], at_most=0)
    report.check("workers that answer members afterwards", len(answered), at_least=num_workers)
    report.data["events"] = status["events"]
    return report


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--hosts", type=int, default=0, choices=(0, *range(2, len(NAMES) + 1)), help="0: this machine")
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--answers", type=int, default=10, help="alone, before anything is sent")
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    quick = {"messages": 4000, "requests": 400, "answers": 2}
    raise SystemExit(main("mutations", __doc__, options, run, quick=quick))
