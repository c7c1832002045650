"""The thread on which MLX computes on a CPU.

MLX hands it a step's operations one by one. Where both threads have to share a core, Linux lets each operation run as
soon as it is handed over, and so switches between the threads twice per operation: several percent of a small model's
step. A thread of the class SCHED_BATCH waits until the other has handed over everything.
"""

import contextlib
import os
import sys

import mlx.core as mx


def put_compute_thread_in_batch_class() -> None:
    """Where there is SCHED_BATCH, have MLX start its thread in that class. Before this thread uses MLX otherwise."""
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    with contextlib.suppress(OSError):  # some containers forbid it
        os.sched_setscheduler(
            0, os.SCHED_BATCH, os.sched_param(0)
        )  # a new thread has the class of the one that starts it
        mx.eval(mx.zeros(1) + 1)
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
