"""mlx-lm's own generation loop in one process, the reference for one stream.

`python -m benchmarks.support.reference MODEL` answers a line with a `Task` by a line with a `Timing`, until its input ends.
"""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from benchmarks.support.machine import CHECKOUT, blas_of, pin
from cluster.membership.local import worker_environment

_ANSWER_LIMIT_S = 600.0


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """Greedy generation of exactly `max_tokens` tokens."""

    prompt: tuple[int, ...]
    max_tokens: int


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds to the first token, and between the first and the last; and the tokens."""

    ttft_s: float
    decode_s: float
    tokens: tuple[int, ...] = ()


class Reference:
    """The parent's side of a reference process."""

    def __init__(self, process: asyncio.subprocess.Process, blas: str):
        self._process = process
        self.blas = blas

    async def generate(self, prompt: list[int], max_tokens: int) -> Timing:
        """One generation. Raises TimeoutError and, when the process failed, msgspec.DecodeError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(Task(prompt=tuple(prompt), max_tokens=max_tokens)) + b"\n")
        async with asyncio.timeout(_ANSWER_LIMIT_S):
            return msgspec.json.decode(await self._process.stdout.readline(), type=Timing)


@contextlib.asynccontextmanager
async def reference(model: Path, core: int) -> AsyncIterator[Reference]:
    """A reference process on one core, with the BLAS that workers get."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.support.reference", str(model)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=CHECKOUT,
        env={**worker_environment(), "PYTHONPATH": str(CHECKOUT)},
    )
    try:
        found = Reference(process, "")
        await found.generate([1, 2, 3], 2)  # loads the model
        pin(process.pid, [core])
        found.blas = blas_of(process.pid)
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def main() -> None:
    """Be the reference process."""
    import mlx.core as mx
    from mlx_lm import load
    from mlx_lm.generate import generate_step

    model = load(sys.argv[1])[0]
    for line in sys.stdin.buffer:
        task = msgspec.json.decode(line, type=Task)
        started = time.perf_counter()
        steps = generate_step(mx.array(task.prompt), model, max_tokens=task.max_tokens)
        tokens, times = zip(*((int(token), time.perf_counter()) for token, _ in steps), strict=True)
        timing = Timing(ttft_s=times[0] - started, decode_s=times[-1] - times[0], tokens=tokens)
        print(msgspec.json.encode(timing).decode(), flush=True)


if __name__ == "__main__":
    main()
