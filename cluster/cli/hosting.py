"""This machine as a host of a cluster elsewhere, whose coordinator asked over ssh: what its workers are started with here."""

import asyncio
import sys

from cluster.cli.joining import model_options
from cluster.cli.session import Session
from cluster.membership.host_orders import to_line
from cluster.membership.hosted import HostedWorkers, Remember, client_address, say_on
from cluster.membership.local import WORKER, LocalLauncher, machine_options

_OUTPUT = 1


def serve(session: Session) -> None:
    """Do what comes on standard input, until its end. Raises TandemError for a home or a configuration that is unusable."""
    session.home.create()
    options = (
        *machine_options(session.settings().settings),
        *model_options(session.checkout, session.environment),
    )

    def make_launcher(orphan_s: float, remember: Remember) -> LocalLauncher:
        given = ("--orphan-s", f"{orphan_s:g}", *options)
        return LocalLauncher(session.home, session.checkout, given, WORKER, remember)

    workers = HostedWorkers(
        session.home,
        make_launcher,
        lambda report: say_on(_OUTPUT, to_line(report)),
        client_address(session.environment),
    )
    asyncio.run(_serve(workers))


async def _serve(workers: HostedWorkers) -> None:
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    await workers.run(orders)
