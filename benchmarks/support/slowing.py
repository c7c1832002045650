"""A worker that computes so many times as slowly as it could, evenly: each part of a step is followed by a pause.

A rank of a tensor group pauses in front of each exchange, so that the others wait for it where they would for a slow one. The checkout
that the worker runs from is changed for that, so it must be a copy. (A share of a processor by control groups would not do: in short
steps it shows seldom, and in long ones all at once.)
"""

from pathlib import Path

_EXECUTOR = "workers/engine/executor.py"
_ALONE = """

def _slowed(method):
    import functools
    import time

    @functools.wraps(method)
    def run(self, *arguments):
        began = time.perf_counter()
        result = method(self, *arguments)
        if type(self) is StageExecutor:
            time.sleep((time.perf_counter() - began) * ({times} - 1))
        return result

    return run


StageExecutor.launch, StageExecutor.finish = _slowed(StageExecutor.launch), _slowed(StageExecutor.finish)
"""
_RANK = "workers/engine/rank_executor.py"
_IN_A_GROUP = """

def _slow():
    import functools
    import time

    from workers.tensor.tcp_group import TcpGroup

    launch, exchange, began = RankExecutor.launch, TcpGroup._exchange, [0.0]

    @functools.wraps(launch)
    def launched(self, *arguments):
        began[0] = time.perf_counter()
        try:
            return launch(self, *arguments)
        finally:
            began[0] = 0.0

    @functools.wraps(exchange)
    def paused(self, *arguments):
        now = time.perf_counter()
        until = now + (now - began[0]) * ({times} - 1) if began[0] else 0.0
        while time.perf_counter() < until:  # a sleep takes longer than some of these
            pass
        try:
            return exchange(self, *arguments)
        finally:
            began[0] = began[0] and time.perf_counter()

    RankExecutor.launch, TcpGroup._exchange = launched, paused


_slow()
"""


def slow_worker(checkout: Path, times: float) -> None:
    """Workers of this checkout take `times` as long for each step, from their next start on."""
    for name, addition in ((_EXECUTOR, _ALONE), (_RANK, _IN_A_GROUP)):
        file = checkout / name
        file.write_text(file.read_text() + addition.format(times=times))
