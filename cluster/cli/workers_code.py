"""What only the workers' code knows, asked of a process of it: the cluster's own imports none of that."""

import subprocess
import sys
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from cluster.cli.session import Session
from cluster.membership.local import worker_environment
from protocol.errors import TandemError

_Printed = TypeVar("_Printed")


def run_workers_code(
    session: Session, module: str, arguments: Sequence[str], printed: type[_Printed], *, fails: str
) -> _Printed:
    """Run `python -m MODULE ARGUMENTS`; returns the JSON that it prints. Raises TandemError, with `fails` before the last line that
    it said.
    """
    done = subprocess.run(
        [sys.executable, "-m", "workers.without_text", module, *arguments],
        cwd=session.checkout,
        env=worker_environment(),
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise TandemError(f"{fails}: {last}")
    return msgspec.json.decode(done.stdout, type=printed)
