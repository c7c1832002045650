"""Downloading a model for `models pull`, in a process of its own: the hub's library ends no download that has begun, so that Ctrl-C
would wait for files of gigabytes.

`python -m cluster.cli.pulling REPO` prints what a start's report has, {"progress": text, ...}, then {"path": text} or {"error": clause}.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from cluster.cli.starting import lines_of, message_in
from cluster.cli.terminal import Terminal
from cluster.cli.time_left import TimeLeft
from protocol.errors import ModelError, TandemError

_PARTIAL = ".incomplete"


def pulled(repo: str, checkout: Path, terminal: Terminal) -> Path:
    """The directory of a model of the hub, downloaded where it is not there yet. Raises ModelError."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli.pulling", repo], cwd=checkout, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        return Path(_awaited(process, TimeLeft(f"asking the hub for {repo}", time.monotonic()), terminal))
    except BaseException:
        _end(process)
        raise
    finally:
        terminal.done()
        process.wait()


def _awaited(process: subprocess.Popen[bytes], left: TimeLeft, terminal: Terminal) -> str:
    assert process.stdout is not None
    with process.stdout as output:
        for line in lines_of(output.fileno()):
            message, now = message_in(line), time.monotonic()
            if "progress" in message:
                left.tell(message["progress"], message.get("done"), message.get("total"), now)
            elif "path" in message:
                return str(message["path"])
            elif "error" in message:
                raise ModelError(message["error"])
            terminal.progress(left.said(now), now)
    raise ModelError("the download ended before it was complete; run the same command again")


def _end(process: subprocess.Popen[bytes]) -> None:
    """At once, with what it has of files that are not whole: the library begins those anew under other names."""
    with contextlib.suppress(psutil.Error):
        partial = [Path(file.path) for file in psutil.Process(process.pid).open_files() if file.path.endswith(_PARTIAL)]
        process.kill()
        for file in partial:
            file.unlink(missing_ok=True)


def _say(**line: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Download, and say how far that is."""
    from huggingface_hub.utils import logging

    from cluster.planning.model_files import resolve_model

    logging.set_verbosity_error()  # what it tries again shows as time that passes
    (repo,) = arguments
    try:
        path = resolve_model(repo, lambda progress: _say(**progress.line))
    except TandemError as error:
        _say(error=str(error))
        return 1
    _say(path=str(path))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
