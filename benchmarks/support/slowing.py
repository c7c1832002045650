"""A worker that computes so many times as slowly as it could, evenly: each part of a step is followed by a pause.

The checkout that the worker runs from is changed for that, so it must be a copy. (A share of a processor by control groups would
not do: in short steps it shows seldom, and in long ones all at once.)
"""

from pathlib import Path

_EXECUTOR = "workers/engine/executor.py"
_SLOWED = """

def _slowed(method):
    import functools
    import time

    @functools.wraps(method)
    def run(*arguments):
        began = time.perf_counter()
        result = method(*arguments)
        time.sleep((time.perf_counter() - began) * ({times} - 1))
        return result

    return run


StageExecutor.launch, StageExecutor.finish = _slowed(StageExecutor.launch), _slowed(StageExecutor.finish)
"""


def slow_worker(checkout: Path, times: float) -> None:
    """Workers of this checkout take `times` as long for each step, from their next start on."""
    file = checkout / _EXECUTOR
    file.write_text(file.read_text() + _SLOWED.format(times=times))
