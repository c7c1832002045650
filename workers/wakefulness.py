"""Keeps this machine from going to sleep for as long as this process lives, with what its system has for that.

A machine that sleeps is a lost worker. Never fails: where nothing keeps the machine awake, the log says so, once. What does ends
with this process, however that ends: on a Mac it is told whom to wait for, on Linux it reads from a pipe that nobody else has.
"""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence

log = logging.getLogger(__name__)


def command(platform: str, pid: int) -> Sequence[str] | None:
    """What keeps a machine of that platform awake until the process `pid` ends or its standard input does; None where nothing is known."""
    match platform:
        case "darwin":
            return ("/usr/bin/caffeinate", "-i", "-s", "-w", str(pid))
        case "linux":
            why = ("--who=Tandem", "--why=a worker of a cluster runs here")
            return ("systemd-inhibit", "--what=sleep:idle", "--mode=block", *why, "cat")
    return None


def stay_awake(platform: str = sys.platform) -> threading.Thread | None:
    """Begin to. Returns the thread that watches over it, None where nothing is known for this platform."""
    words = command(platform, os.getpid())
    if words is None:
        return None
    thread = threading.Thread(target=_watch, args=(words,), name="awake", daemon=True)
    thread.start()
    return thread


def _watch(words: Sequence[str]) -> None:
    """Until it ends, which it should not before this process does."""
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        assert process.stderr is not None
        why = process.stderr.read().decode(errors="replace").strip() or "it ended"
        process.wait()
    except OSError as error:
        why = error.strerror or str(error)
    log.info("this machine may go to sleep while the worker runs: %s: %s", words[0], why)
