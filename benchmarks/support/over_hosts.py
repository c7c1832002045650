"""A Tandem cluster over several hosts of a bed (tests/hosts), for benchmarks that a cluster on one machine serves as well.

What this process opens meanwhile belongs to the network of the first host, whose API listens on loopback there; but what it sends
by ZeroMQ goes out from the second. Needs Linux and its superuser.
"""

import contextlib
from collections.abc import AsyncIterator

import zmq

from benchmarks.support.client import get_json
from benchmarks.support.contenders import Cluster, configuration
from benchmarks.support.resources import COORDINATOR_NAME, Place, processes_of
from protocol.errors import TandemError
from tests.hosts.bed import Bed
from tests.hosts.cluster import FIRST, HostsCluster
from tests.hosts.room import WIFI
from tests.hosts.tools import network_of, why_no_bed

SENDER = "b"
_PORT = 8420


@contextlib.asynccontextmanager
async def over_hosts(num_hosts: int, model: str, *, kept_bytes: int) -> AsyncIterator[Cluster]:
    """One worker on each of at least two hosts. Raises TandemError where this machine cannot make hosts.

    model: its path from the checkout on; kept_bytes: as `contenders.cluster` has it.
    """
    if why := why_no_bed():
        raise TandemError(why)
    with Bed(num_hosts) as bed:
        with network_of(bed.hosts[SENDER].pid):
            zmq.Context.instance().socket(zmq.PUSH).close()  # begins the threads that connect for all others
        first, started = bed.hosts[FIRST], HostsCluster(bed)
        config = first.home / "bench.toml"
        first.outside(config).write_text(configuration(first.checkout / model, _PORT, (), kept_bytes=kept_bytes))
        started.start("--config", str(config))
        try:
            started.invite(*(name for name in bed.hosts if name != FIRST))
            started.await_parts(num_hosts)
            started.await_cables()
            with network_of(first.pid):
                yield await _cluster(tuple(_place(bed, name) for name in bed.hosts))
        finally:
            started.stop()


def _place(bed: Bed, name: str) -> Place:
    """With the addresses by which the sender reaches it."""
    host, cables = bed.hosts[name], () if name == SENDER else (f"tb-{SENDER}",)
    home = host.checkout / ".tandem"
    return Place(
        home=home,
        files=host.outside(home),
        addresses=tuple(bed.address(name, interface) for interface in (WIFI, *cables)),
        first_pid=host.pid,
    )


async def _cluster(hosts: tuple[Place, ...]) -> Cluster:
    url = f"http://127.0.0.1:{_PORT}"
    status = await get_json(url, "/status")
    pids = {process.name: process.pid for host in hosts for process in processes_of(host)}
    return Cluster(
        url=url,
        home=hosts[0].files,
        model=status["model"]["id"],
        pids=tuple(pids[worker["name"]] for worker in status["workers"]),
        front_pid=pids[COORDINATOR_NAME],
        hosts=hosts,
    )
