"""`trace`: a recording of the running cluster, in a file or on standard output."""

import os
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import chain
from typing import BinaryIO

from cluster.cli.session import Session
from protocol.errors import TandemError

STDOUT = "-"
# Beside the seconds that were asked for: to begin, to hear what was done last, and to answer on a busy machine.
_MORE_S = 30.0
_CLOSED = b"]\n"


def trace(session: Session, seconds: int, output: str) -> None:
    """Record for so long, or until interrupted: what came until then can be looked at.

    Raises TandemError where no cluster runs or the file cannot be written, and as `Client.get`.
    """
    state = session.running_state()
    if state is None:
        raise TandemError("no cluster runs here; start it first with `./launch.sh start`")
    address = f"/v1/cluster/trace?seconds={seconds}"
    with closing(session.client(state).lines(address, seconds + _MORE_S)) as lines:
        first = next(lines)  # an error of the API comes before there is a file
        with _opened(output) as file:
            _copy(session, chain([first], lines), file, seconds)
    if output != STDOUT:
        print(f"{output} holds {seconds} s of this cluster: open it at ui.perfetto.dev, which reads it in the browser.")


def _copy(session: Session, lines: Iterable[bytes], file: BinaryIO, seconds: int) -> None:
    began_at, last = time.monotonic(), b""
    try:
        for line in lines:
            if line != b"\n":
                file.write(line)
                last = line
            passed_s = min(int(time.monotonic() - began_at), seconds)
            session.terminal.progress(f"recording, {passed_s} of {seconds} s")
        if last != _CLOSED:
            raise TandemError("the recording broke off; `./launch.sh status` says how the cluster is")
    finally:
        session.terminal.done()
        if last != _CLOSED:
            file.write(_CLOSED)
        file.flush()


def _opened(output: str) -> AbstractContextManager[BinaryIO]:
    if output == STDOUT:
        return nullcontext(sys.stdout.buffer)
    try:
        return os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "wb")
    except OSError as error:
        raise TandemError(f"{output} cannot be written ({error.strerror}); choose another file with --output") from None
