"""The thread on which MLX computes on a CPU.

MLX hands it a step's operations one by one. Where both threads have to share a core, Linux lets each operation run as
soon as it is handed over, and so switches between the threads twice per operation: several percent of a small model's
step. A thread of the class SCHED_BATCH waits until the other has handed over everything.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

import mlx.core as mx


def start_compute_thread() -> None:
    """Have MLX start its thread, in the class SCHED_BATCH where there is one; before this thread uses MLX otherwise."""
    with _new_threads_in_batch_class():
        mx.eval(mx.zeros(1) + 1)


@contextlib.contextmanager
def _new_threads_in_batch_class() -> Iterator[None]:
    if sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_OTHER:
        with contextlib.suppress(OSError):  # some containers forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        yield
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    else:
        yield
