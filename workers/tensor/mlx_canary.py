"""Whether mx.distributed works between these ranks: tried by a child of each of them, since what hangs in it hangs for ever.

Run as a process of its own it is such a child.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from protocol.errors import in_one_line

TRY_WITHIN_S = 30.0
_LOOK_S = 1.0
_SAID_CHARACTERS = 160


def why_not(transport: str, size: int, environment: Mapping[str, str], waiting: Callable[[], object]) -> str | None:
    """A clause where one sum does not come right in time. environment: as of `mlx_files`; waiting: called now and then; what it raises
    ends the child.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "workers.tensor.mlx_canary", transport, str(size)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        return _outcome(child, transport, waiting)
    finally:
        child.kill()
        child.communicate()


def _outcome(
    child: "subprocess.Popen[str]",
    transport: str,
    waiting: Callable[[], object],
    now: Callable[[], float] = time.monotonic,
) -> str | None:
    until = now() + TRY_WITHIN_S
    while now() < until:
        try:
            _, said = child.communicate(timeout=_LOOK_S)
        except subprocess.TimeoutExpired:
            waiting()
            continue
        if child.returncode == 0:
            return None
        lines = said.strip().splitlines() or [f"exit status {child.returncode}"]
        return f"a try of {transport} failed: {in_one_line(lines[-1], _SAID_CHARACTERS)}"
    return f"a try of {transport} did not end in {TRY_WITHIN_S:.0f} s"


def _try(transport: str, size: int) -> None:
    import mlx.core as mx

    group = mx.distributed.init(strict=True, backend=transport)
    if group.size() != size:
        raise RuntimeError(f"{group.size()} ranks came, not {size}")
    total = mx.distributed.all_sum(mx.ones((1, 4096)), group=group)
    mx.eval(total)
    if not mx.all(total == size).item():
        raise RuntimeError("a sum is wrong")


if __name__ == "__main__":
    try:
        _try(sys.argv[1], int(sys.argv[2]))
    except (RuntimeError, ValueError) as error:
        sys.exit(str(error))
    os._exit(0)  # what mx.distributed began would not end
