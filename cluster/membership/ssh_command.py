"""How another host is asked over the system's ssh, and what it means when that fails: a sentence each, with what mends it.

Pure. ssh is never allowed to ask anybody: who is not known, or not let in, is said instead. What runs there is a line for
`/bin/sh`, quoted once for that and once more for the user's own shell, whichever that is.
"""

import re
import shlex
from collections.abc import Sequence

from cluster.settings import HostSettings
from protocol.errors import TandemError

SSH = "ssh"
OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=5",
    "StrictHostKeyChecking=yes",
    "ServerAliveInterval=2",
    "ServerAliveCountMax=3",
    "ControlPath=none",
)
HOSTED = ("hosted",)
_SSH_FAILED = 255
_NO_CHECKOUT, _NO_PYTHON = 66, 67
# A tilde that the shell there is to replace; all else of a path is quoted.
_FROM_HOME = re.compile(r"(~[A-Za-z0-9_.-]*)(?:/(.*))?", re.DOTALL)


class HostUnavailable(TandemError):
    """Workers of another host cannot be started now; the clause says why, and what mends it."""


def ssh_command(host: HostSettings, program: str = SSH, arguments: Sequence[str] = HOSTED) -> list[str]:
    """What runs `./launch.sh ARGUMENTS` there, which makes its environment first where that is missing."""
    options = [word for option in OPTIONS for word in ("-o", option)]
    user = [] if host.user is None else ["-l", host.user]
    port = [] if host.port is None else ["-p", str(host.port)]
    script = shlex.quote(_script(host, arguments))
    return [program, "-T", *options, *user, *port, "--", host.address, f"exec /bin/sh -c {script}"]


def _script(host: HostSettings, arguments: Sequence[str]) -> str:
    python = ""
    if host.python is not None:
        quoted = quoted_path(host.python)
        python = f"TANDEM_PYTHON={quoted}; export TANDEM_PYTHON; "
        python += f'command -v "$TANDEM_PYTHON" >/dev/null 2>&1 || exit {_NO_PYTHON}; '
    there = f"cd {quoted_path(host.checkout)} 2>/dev/null && [ -f launch.sh ] || exit {_NO_CHECKOUT}; "
    return f"{there}{python}exec ./launch.sh {shlex.join(arguments)}"


def quoted_path(path: str) -> str:
    """A path as one word of a shell, in which a tilde at its beginning still means a home."""
    found = _FROM_HOME.fullmatch(path)
    if found is None:
        return shlex.quote(path)
    home, rest = found.groups()
    return f"{home}/{shlex.quote(rest)}" if rest else home


def no_ssh(error: OSError) -> HostUnavailable:
    """What to raise where the program itself cannot be run."""
    return HostUnavailable(f"ssh cannot be run here ({error.strerror}); install OpenSSH's client")


def why_failed(host: HostSettings, status: int | None, said: str) -> str:
    """Why there is no connection to a host, as a clause. said: what ssh, and what it ran there, wrote as errors."""
    to, last = _destination(host), _last_line(said)
    if "no space left on device" in said.lower():
        return f"the disk of {host.name} is full; make room there"
    if status == _SSH_FAILED:
        clause = next((clause for sign, clause in _SIGNS.items() if sign in said), _OTHERWISE)
    elif "no command 'hosted'" in said:
        clause = _OTHER_VERSION
    else:
        clause = _CLAUSES.get(status or 0, _ENDED)
    return clause.format(
        name=host.name,
        address=host.address,
        checkout=host.checkout,
        python=host.python,
        ssh=to,
        to=to.removeprefix("ssh "),
        place=_known_as(host),
        last=last or "it said nothing",
    )


_OTHER_VERSION = "{name} has another version of Tandem; bring both checkouts to the same commit"
_ENDED = "{name} could not begin: {last}"
_CLAUSES = {
    _NO_CHECKOUT: "{name} has no checkout of Tandem in {checkout}; put the same commit there, or say where it is with "
    "checkout in [[hosts]]",
    _NO_PYTHON: "{name} has no Python at {python}; correct python in [[hosts]], or leave it out",
}
_KEY_UNKNOWN = "the host key of {name} is not known here; run `{ssh}` once and compare what it shows"
_UNREACHABLE = "{name} does not answer at {address}; wake it up, and check the cable and the network"
_OTHERWISE = "ssh to {name} failed: {last}; try `{ssh}`"
# What OpenSSH says, in the order in which it counts: a changed key makes it say the second, too.
_SIGNS = {
    "HOST IDENTIFICATION HAS CHANGED": "the host key of {name} has changed; where that is right, run "
    "`ssh-keygen -R {place}`, then `{ssh}` once",
    "Host key verification failed": _KEY_UNKNOWN,
    "Permission denied": "{name} lets this user not in without a password; run `ssh-copy-id {to}` once",
    "Could not resolve hostname": "no host is named {address}; correct address in [[hosts]], or wake it up",
    "Connection refused": "{name} takes no ssh; turn on Remote Login there (System Settings, General, Sharing)",
    "timed out": _UNREACHABLE,
    "No route to host": _UNREACHABLE,
    "Host is down": _UNREACHABLE,
    "Network is unreachable": _UNREACHABLE,
    "not responding": _UNREACHABLE,
}


def _destination(host: HostSettings) -> str:
    """The ssh command by which a person gets there."""
    user = "" if host.user is None else f"{host.user}@"
    port = "" if host.port is None else f"-p {host.port} "
    return f"ssh {port}{user}{host.address}"


def _known_as(host: HostSettings) -> str:
    """Its name in known_hosts, as a word of a shell."""
    return host.address if host.port in (None, 22) else f"'[{host.address}]:{host.port}'"


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].removeprefix("tandem: ").rstrip(".") if lines else ""
