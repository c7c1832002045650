"""What a host says of itself when one of its workers joins: for people, and to compare what computes there."""

import functools
import platform
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import msgspec
import psutil

# What must be the same everywhere, or the same prompt has another answer or none.
COMPARED = ("mlx", "mlx-lm")
_CHIP_S = 5.0


class HostSpecs(msgspec.Struct, frozen=True, kw_only=True):
    """name: as the network knows it; chip, os: in words; versions: of Python and what computes; memory_bytes: all of it."""

    name: str = ""
    chip: str = ""
    os: str = ""
    versions: dict[str, str] = {}
    memory_bytes: int = 0


@functools.cache
def read_host_specs() -> HostSpecs:
    """This host's."""
    return HostSpecs(
        name=socket.gethostname(),
        chip=_chip(),
        os=_system(),
        versions={"python": platform.python_version()} | {name: _version(name) for name in COMPARED},
        memory_bytes=psutil.virtual_memory().total,
    )


def difference(mine: HostSpecs, theirs: HostSpecs, *, allow_mixed: bool = False) -> str | None:
    """What of theirs would change answers, as a clause with both versions and what mends it; None where nothing does.

    allow_mixed: patch levels of mlx may differ.
    """
    for name in COMPARED:
        here, there = mine.versions.get(name, "none"), theirs.versions.get(name, "none")
        is_patch = name == "mlx" and _minor(here) == _minor(there)
        if here == there or (is_patch and allow_mixed):
            continue
        mends = "bring both checkouts to the same commit, as with `git pull`"
        if is_patch:
            mends += ", or start the cluster with `./launch.sh start --replace --allow-mixed`"
        return f"it has {name} {there} and this cluster {here}; {mends}"
    return None


def _minor(version_text: str) -> list[str]:
    """A version without its patch level."""
    return version_text.split(".")[:2]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def _system() -> str:
    return f"macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else f"{platform.system()} {platform.release()}"


def _chip() -> str:
    if sys.platform == "darwin":
        try:
            found = subprocess.run(
                ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"],
                capture_output=True,
                text=True,
                timeout=_CHIP_S,
                check=True,
            )
            return found.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    return platform.processor() or platform.machine()
