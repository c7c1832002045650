"""mlx-lm's own tensor parallelism for one stream: its model, cut by its `shard`, on ranks over the ring, in its own loop, without a server.

Run as a process of its own it is one of the ranks; the first prints what came of it as JSON.
"""

import asyncio
import json
import os
import random
import sys
import tempfile
from pathlib import Path

import msgspec

from benchmarks.support.contenders import end_of, end_ranks, start_ranks
from benchmarks.support.machine import pin_each

_LIMIT_S = 300.0


class OneStream(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens a second, of one prompt that was read and of the answer that came after it."""

    read_per_s: float
    decode_per_s: float


async def one_stream(model: Path, ranks: int, prompt_tokens: int, max_tokens: int) -> OneStream:
    """The second answer of ranks that are started for it, each on a core. Raises RuntimeError where they do not answer."""
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        command = [
            sys.executable,
            "-m",
            "benchmarks.support.ring_ranks",
            str(model),
            str(prompt_tokens),
            str(max_tokens),
        ]
        processes = start_ranks(command, ranks, Path(folder))
        log = Path(folder) / "rank0.log"
        try:
            pin_each([process.pid for process in processes])
            async with asyncio.timeout(_LIMIT_S):
                await asyncio.to_thread(processes[0].wait)
            return msgspec.json.decode(log.read_text().splitlines()[-1], type=OneStream)
        except (TimeoutError, IndexError, msgspec.DecodeError) as error:
            raise RuntimeError(f"mlx-lm on {ranks} ring ranks did not answer: {end_of(log)}") from error
        finally:
            end_ranks(processes)


def _be_rank(model: str, prompt_tokens: int, max_tokens: int) -> None:
    import mlx.core as mx
    from mlx_lm import stream_generate
    from mlx_lm.utils import sharded_load

    group = mx.distributed.init(strict=True, backend="ring")
    loaded, tokenizer = sharded_load(model, tensor_group=group)
    chosen = random.Random(0)
    for _ in range(2):
        prompt = [chosen.randrange(256, 2000) for _ in range(prompt_tokens)]
        *_, last = stream_generate(loaded, tokenizer, prompt, max_tokens=max_tokens)
    if group.rank() == 0:
        print(json.dumps({"read_per_s": last.prompt_tps, "decode_per_s": last.generation_tps}), flush=True)
    os._exit(0)  # the ring's threads would not end


if __name__ == "__main__":
    _be_rank(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
