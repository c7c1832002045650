"""The system's tools that make a bed, with a limit on each call, and its call to enter one; and whether this machine can have a bed."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Each host would compile for itself what MLX computes with, which takes a processor half a minute.
ENVIRONMENT = {"PATH": SEARCHED, "LANG": "C.UTF-8", "MLX_DISABLE_COMPILE": "1"}
# A limit against hanging for ever on a busy machine, no expectation.
TOOL_LIMIT_S = 60.0
# What starts a process that ends, with all that it started in its namespaces, when the thread that calls this does.
ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL")

_CLONE_NEWNET = 0x40000000
_NEEDED = ("ip", "tc", "nft", "unshare", "nsenter", "setpriv", "pivot_root", "ssh", "ssh-keygen", "sshd")
_TRIAL = """
ip link add one type veth peer name other
ip link add bridge type bridge
tc qdisc add dev one root tbf rate 1mbit burst 64k latency 50ms
nft 'table netdev trial { chain one { type filter hook ingress device "one" priority 0; meta l4proto tcp reject with tcp reset; }; }'
"""


def tool(*argv: object, text: str = "") -> str:
    """Run one to its end, with `text` as its input; what it printed. Raises RuntimeError with what it complained of."""
    done = subprocess.run(
        [str(each) for each in argv],
        input=text,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=TOOL_LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, argv))} failed: {done.stderr.strip()}\n{text}")
    return done.stdout


@contextlib.contextmanager
def network_of(pid: int) -> Iterator[None]:
    """Sockets that this thread makes meanwhile belong to the network of a host, by its first process, for as long as they live."""
    with Path("/proc/thread-self/ns/net").open() as ours, Path(f"/proc/{pid}/ns/net").open() as theirs:
        _enter(theirs.fileno())
        try:
            yield
        finally:
            _enter(ours.fileno())


def _enter(network: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(network, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "the network of a host cannot be entered")


def why_no_bed() -> str | None:
    """What is missing on this machine for a bed, or None."""
    if sys.platform != "linux":
        return "hosts in namespaces need Linux"
    if os.geteuid() != 0:
        return "hosts in namespaces need root"
    if missing := [name for name in _NEEDED if shutil.which(name, path=SEARCHED) is None]:
        return f"{', '.join(missing)} not found: on Debian, install openssh-server, nftables and iproute2"
    if not (Path(sys.prefix) / "pyvenv.cfg").is_file():
        return "hosts share the virtual environment of these tests, which run without one"
    try:
        tool("unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "sh", "-euc", _TRIAL)
    except RuntimeError as refused:
        return f"this kernel refuses: {refused}"
    return None
