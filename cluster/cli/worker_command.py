"""The command `worker`, as the command line shows it: joining a cluster elsewhere, now or whenever this machine starts."""

import os
import sys

import click

from cluster.cli.becoming import become
from protocol.errors import UsageError

_FROM_INPUT = "-"


@click.command()
@click.option("--join", "address", metavar="ADDRESS", help="Where it takes workers; auto looks for it.")
@click.option("--token", envvar="TANDEM_TOKEN", help="What lets it in the first time; - reads it from standard input.")
@click.option("--name", help="This worker's name; the machine's name by default.")
@click.option("--memory-limit", metavar="SIZE", help="For weights and caches; three quarters of the memory by default.")
@click.option("--background", is_flag=True, help="Return once it belongs to the cluster; `stop` ends it.")
@click.option("--install-service", is_flag=True, help="Join now and whenever this machine starts.")
@click.option("--uninstall-service", is_flag=True, help="End that.")
def worker(
    address: str | None,
    token: str | None,
    name: str | None,
    memory_limit: str | None,
    *,
    background: bool,
    install_service: bool,
    uninstall_service: bool,
) -> None:
    """Join this machine as a worker to a cluster elsewhere."""
    if background + install_service + uninstall_service > 1:
        raise UsageError("--background, --install-service and --uninstall-service exclude each other; give one of them")
    if uninstall_service:
        _uninstall(name)
        return
    given = sys.stdin.readline().strip() if token == _FROM_INPUT else token
    if install_service:
        _install(address, given, name, memory_limit)
        return
    if address is None:
        raise UsageError("worker needs --join ADDRESS, or --join auto to look for the cluster")
    _join(address, given, name, memory_limit, background=background)


def _join(address: str, token: str | None, name: str | None, memory_limit: str | None, *, background: bool) -> None:
    from cluster.cli.discovering import find_cluster
    from cluster.cli.joining import guest_process, start_behind
    from cluster.cli.session import open_session

    session = open_session()
    guest = guest_process(
        session,
        address=address,
        token=token,
        name=name,
        memory_limit=memory_limit,
        environment=os.environ,
        find=find_cluster,
    )
    if not background:
        become("workers", guest.arguments, guest.environment)
    pid = start_behind(session, guest)
    print(f"Worker {guest.name} (pid {pid}) belongs to the cluster; `./launch.sh stop` here ends it.")


def _install(address: str | None, token: str | None, name: str | None, memory_limit: str | None) -> None:
    from cluster.cli.discovering import find_cluster
    from cluster.cli.installing import Installer
    from cluster.cli.session import open_session

    installer = Installer.here(open_session(), print)
    installer.install(address=address, token=token, name=name, memory_limit=memory_limit, find=find_cluster)


def _uninstall(name: str | None) -> None:
    from cluster.cli.installing import Installer
    from cluster.cli.session import open_session

    Installer.here(open_session(), print).uninstall(name)
