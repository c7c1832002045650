"""Commands on the other hosts of a cluster: the same `./launch.sh` there, over the system's ssh.

Knows which hosts there are and how a command there ends; what it does is the command's own.
"""

import subprocess
import sys
from collections.abc import Sequence

from cluster.cli.session import Session
from cluster.cli.terminal import Terminal
from cluster.membership.member import LOCAL
from cluster.membership.ssh_command import HostUnavailable, no_ssh, ssh_command, why_failed
from cluster.settings import HostSettings
from protocol.errors import UsageError

_TOLD = "tandem: "
# A larger exit code is ssh's, or says that there is no Tandem.
_LARGEST_OF_OURS = 2


def run_there(session: Session, name: str, arguments: Sequence[str]) -> int:
    """Run `./launch.sh ARGUMENTS` on the host `name`, whose output is printed here; returns its exit code.

    Raises:
        UsageError: there is no such host, or nobody here may log in to it.
        HostUnavailable: it cannot be asked.
    """
    host = _host(session, name, arguments[0])
    sys.stdout.flush()
    try:
        process = subprocess.Popen(
            ssh_command(host, arguments=arguments),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise no_ssh(error) from None
    with process:
        said, was_told = _pass_on(process, host.name, session.terminal)
    status = process.returncode
    if status > _LARGEST_OF_OURS or (status and said and not was_told):
        raise HostUnavailable(why_failed(host, status, said))
    return status


def _pass_on(process: "subprocess.Popen[str]", host: str, terminal: Terminal) -> tuple[str, bool]:
    """Show the sentences that the command there says; returns all that is no such sentence, and whether there was one."""
    assert process.stderr is not None
    said, was_told = "", False
    for line in process.stderr:
        if line.startswith(_TOLD):
            was_told = True
            terminal.note(f"{_TOLD}{host}: {line.removeprefix(_TOLD).rstrip()}")
        else:
            said += line
    return said, was_told


def _host(session: Session, name: str, command: str) -> HostSettings:
    """The host of that name, or that a worker of that name runs on. Raises UsageError."""
    hosts = (session.running_settings() or session.settings().settings).hosts
    for host in hosts:
        if name in (host.name, *host.worker_names):
            return host
    status = session.status()
    if any(name in (found["name"], *found["workers"]) for found in status["hosts"] if found["name"] != LOCAL):
        raise UsageError(
            f"{name} joined with a token, and nobody can log in to it from here; run `./launch.sh {command}` there"
        )
    known = ", ".join(host.name for host in hosts) or "none"
    raise UsageError(
        f"there is no host {name!r} in [[hosts]], which names {known}; without --host it is about this machine"
    )
