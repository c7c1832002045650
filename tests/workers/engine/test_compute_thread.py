import os
import subprocess
import sys

import pytest

CHILD = """
import os, psutil
from workers.engine.compute_thread import put_compute_thread_in_batch_class
before = {thread.id for thread in psutil.Process().threads()}
put_compute_thread_in_batch_class()
import mlx.core as mx
mx.eval(mx.zeros((64, 64)) @ mx.zeros((64, 64)))
begun = {thread.id for thread in psutil.Process().threads()} - before
print(os.sched_getscheduler(0), sorted(os.sched_getscheduler(thread) for thread in begun))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has scheduling classes for threads")
def test_only_mlx_own_thread_waits_for_whole_steps():
    found = subprocess.run([sys.executable, "-c", CHILD], check=True, capture_output=True, text=True).stdout
    assert found.split(maxsplit=1) == [str(os.SCHED_OTHER), f"[{os.SCHED_BATCH}]\n"]
