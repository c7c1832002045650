"""A thousand joins that nobody invited, beside a client that is served: does one get in, does anybody notice?

Strangers come to the door as a worker does, each with a key of its own: without a token, with one that has expired, was used
up, was revoked, was cut off or is another cluster's, at a door that they take for another cluster's, and in the name of a
worker that is there. A token that would let workers in lies there all the while; afterwards one comes by it, so that the door
is known to have been open.
"""

import argparse
import asyncio
import os
import queue
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import msgspec

from benchmarks.support import machine
from benchmarks.support.client import checked, get_json
from benchmarks.support.contenders import Cluster, WorkerLimits, cluster
from benchmarks.support.main import main
from benchmarks.support.reporting import Report
from benchmarks.support.resources import sample
from benchmarks.support.served import Served, add_answers, add_use
from benchmarks.support.trials import until_ready
from cluster.config import BUNDLED_MODEL
from cluster.membership.invitations import InvitationBook
from protocol.codec import PROTOCOL, Envelope
from protocol.home import Home
from protocol.host_specs import read_host_specs
from protocol.join_token import ID_CHARACTERS, make_id, make_secret
from protocol.messages import Join, Leave, Rejected, Welcome
from protocol.transport import LOOPBACK, KeyPair, ZmqInbox, ZmqOutbox
from protocol.transport.addressing import endpoint_of
from protocol.values import Peer

MODEL = machine.CHECKOUT / BUNDLED_MODEL
KEPT_BYTES = 4 << 20
LET_IN, NOTHING = "let in", "nothing"
_AT_ONCE = 16
_TOLD_WITHIN_S = 1.0
_LOG_LINES = 150  # of the coordinator: twenty of a kind in a minute


class Knock(msgspec.Struct, frozen=True):
    """How somebody comes. door: where, with the key that it is taken to have; name: of the worker that it says to be."""

    door: Peer
    secret: str = ""
    name: str = "stranger"


def uninvited(home: Home, taken: str, lets_in: str, generator: random.Random) -> Mapping[str, Callable[[], Knock]]:
    """Every way to come without an invitation. taken: the name of a worker that is there; lets_in: the secret of a token."""
    door = door_of(home)
    elsewhere = msgspec.structs.replace(door, public_key=KeyPair.generate().public)
    book = _book(home)
    expired = InvitationBook(home, lambda: time.time() - 3600, read_host_specs()).new(uses=None, lasts_s=60)
    used_up, revoked = book.new(uses=0, lasts_s=None), book.new(uses=None, lasts_s=None)
    book.revoke(revoked[:ID_CHARACTERS], with_guests=True)
    return {
        "without a token": lambda: Knock(door),
        "expired": lambda: Knock(door, expired),
        "used up": lambda: Knock(door, used_up),
        "revoked": lambda: Knock(door, revoked),
        "cut off": lambda: Knock(door, lets_in[: generator.randrange(1, len(lets_in))]),
        "another cluster's": lambda: Knock(door, make_id() + make_secret()),
        "another cluster's door": lambda: Knock(elsewhere, make_id() + make_secret()),
        "in a worker's name": lambda: Knock(door, make_secret(), taken),
    }


def door_of(home: Home) -> Peer:
    """Where a cluster lets workers in."""
    desired = home.read_desired()
    assert desired is not None
    return Peer(endpoint=endpoint_of(LOOPBACK, desired.port), public_key=desired.public_key)


def _book(home: Home) -> InvitationBook:
    return InvitationBook(home, time.time, read_host_specs())


def come(knock: Knock) -> str:
    """Ask once to be let in, and leave; what was said to that: LET_IN, why not, or NOTHING."""
    keys = KeyPair.generate()
    said: queue.SimpleQueue[Envelope] = queue.SimpleQueue()
    with closing(ZmqInbox(said.put, keys=keys)) as inbox, closing(ZmqOutbox(keys)) as outbox:
        inbox.start()
        outbox.send(knock.door, 0, _join(knock, inbox.peer))
        try:
            message = said.get(timeout=_TOLD_WITHIN_S).message
        except queue.Empty:
            return NOTHING
        if isinstance(message, Welcome):
            outbox.send(message.inbox, 0, Leave(worker=knock.name))
            return LET_IN
        return message.reason if isinstance(message, Rejected) else type(message).__name__


def _join(knock: Knock, peer: Peer) -> Join:
    return Join(
        protocol=PROTOCOL,
        secret=knock.secret,
        name=knock.name,
        host="elsewhere",
        pid=os.getpid(),
        peer=peer,
        data=peer,
        memory_limit_bytes=1 << 30,
        about=read_host_specs(),
    )


async def attack(
    ways: Mapping[str, Callable[[], Knock]], count: int, generator: random.Random
) -> Mapping[str, Counter[str]]:
    """So many of them, some at a time, in any order; what was said, by the way in which they came."""
    said: dict[str, Counter[str]] = defaultdict(Counter)
    order = [list(ways)[number % len(ways)] for number in range(count)]
    generator.shuffle(order)
    left = iter(order)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(_AT_ONCE) as pool:

        async def one_after_the_other() -> None:
            for way in left:
                said[way][await loop.run_in_executor(pool, come, ways[way]())] += 1

        await asyncio.gather(*(one_after_the_other() for _ in range(_AT_ONCE)))
    return said


def _log_lines(home: Home) -> int:
    return sum(file.read_bytes().count(b"\n") for file in home.logs.glob("coordinator.log*"))


async def _standing(running: Cluster) -> tuple[int, list[str]]:
    """The plan's number and the workers."""
    status = await get_json(running.url, "/status")
    return status["epoch"], [worker["name"] for worker in status["workers"]]


async def run(arguments: argparse.Namespace) -> Report:
    """All of them on one cluster, then one that is invited."""
    generator = random.Random(arguments.seed)
    report = Report("joins")
    async with cluster(MODEL, [WorkerLimits()] * arguments.workers, kept_bytes=KEPT_BYTES) as running:
        await until_ready(running, arguments.workers)
        home, served = Home(running.home), Served(running)
        right = checked(await served.one()).tandem["token_ids"]
        alone = [checked(await served.one()) for _ in range(arguments.answers)]
        standing = await _standing(running)
        lets_in = _book(home).new(uses=None, lasts_s=None)
        ways = uninvited(home, standing[1][0], lets_in, generator)
        lines = _log_lines(home)
        # What is kept of strangers is there before memory is counted.
        await attack(ways, arguments.joins // 10, generator)
        before = sample(running.places, 0)
        async with served.meanwhile():
            said = await attack(ways, arguments.joins, generator)
        after, lines = sample(running.places, 1), _log_lines(home) - lines
        guests, stands = _book(home).read().guests, await _standing(running) == standing
        invited = await asyncio.to_thread(come, Knock(door_of(home), lets_in))
        await until_ready(running, arguments.workers)
    report.fact("machine", machine.describe())
    report.fact("sent", f"{arguments.joins} joins, seed {arguments.seed}")
    report.table(
        "what was said to them", ["how they came", "number", "nothing", "refused", "let in"], list(_rows(said))
    )
    add_use(report, before, after)
    report.check("let in", len(guests) + sum(told[LET_IN] for told in said.values()), at_most=0)
    report.check("plans or workers that changed", int(not stands), at_most=0)
    report.check("lines that it adds to the coordinator's log", lines, at_most=_LOG_LINES)
    report.check("invited afterwards, and let in", int(invited == LET_IN), at_least=1)
    add_answers(report, served, right, alone)
    report.data["said"] = {way: dict(told) for way, told in said.items()}
    return report


def _rows(said: Mapping[str, Counter[str]]) -> Iterator[list[str | int]]:
    for way, told in said.items():
        refused = told.total() - told[NOTHING] - told[LET_IN]
        yield [way, told.total(), told[NOTHING], refused, told[LET_IN]]


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--joins", type=int, default=1000)
    parser.add_argument("--answers", type=int, default=10, help="alone, before anybody comes")
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    raise SystemExit(main("joins", __doc__, options, run, quick={"joins": 80, "answers": 2}))
