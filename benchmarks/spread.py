"""A larger model over three hosts that share nothing: are its answers those of mlx-lm alone, and what does each link carry?

Hosts in namespaces, as `hosts` has them; only the first has the model, the other two fetch their layers. Then prompts of many
tokens are answered over all three, and every interface's bytes are counted meanwhile. Hidden states are what the two hops
between the stages have to carry; what the wifi carries, by which the workers joined, is what the coordinator says and hears.
Needs Linux and its superuser.
"""

import argparse
import asyncio
import json
import random
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.support import machine
from benchmarks.support.main import main
from benchmarks.support.random_models import SIZES, ensure_model, known_models
from benchmarks.support.reference import reference
from benchmarks.support.reporting import Report
from protocol.errors import TandemError
from tests.hosts.bed import Bed
from tests.hosts.cluster import FIRST, HostsCluster
from tests.hosts.tools import tool, why_no_bed

NUM_TOKENS = 32
NUM_HOPS = 2
BYTES_PER_NUMBER = {"float32": 4, "bfloat16": 2, "float16": 2, "4bit": 4}
MOST_SHARE = 0.01


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. right: its ids are mlx-lm's; hidden_bytes: what the hops had to carry; the others: what interfaces sent."""

    right: bool
    workers: int
    hidden_bytes: int
    cable_bytes: int
    wifi_bytes: int


def run(arguments: argparse.Namespace) -> Report:
    """Raises TandemError where this machine cannot make hosts."""
    if why := why_no_bed():
        raise TandemError(why)
    path = ensure_model(arguments.model, machine.model_folder())
    size, _, kind = arguments.model.partition("-")
    width = SIZES[size].hidden * BYTES_PER_NUMBER[kind]
    generator = random.Random(arguments.seed)
    prompts = [generator.choices(range(100, 2000), k=arguments.prompt_tokens) for _ in range(arguments.rounds)]
    expected = asyncio.run(_ids_alone(path, prompts))
    with Bed() as bed:
        cluster = HostsCluster(bed)
        cluster.start("--model", _on_first_host(bed, path))
        try:
            cluster.invite("b", "c")
            cluster.await_parts(3)
            cluster.await_cables()
            found = [_answered(cluster, prompt, ids, width) for prompt, ids in zip(prompts, expected, strict=True)]
        finally:
            cluster.stop()
    return _report(arguments, found)


async def _ids_alone(path: Path, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Greedily, by mlx-lm."""
    async with reference(path, 0) as alone:
        return [list((await alone.generate(prompt, NUM_TOKENS)).tokens) for prompt in prompts]


def _on_first_host(bed: Bed, path: Path) -> str:
    """Where the model is there, the user's own."""
    host = bed.hosts[FIRST]
    there = host.home / path.name
    shutil.copytree(path, host.outside(there))
    tool("chown", "-R", f"{host.uid}:{host.uid}", host.outside(there))
    return str(there)


def _answered(cluster: HostsCluster, prompt: Sequence[int], ids: list[int], width: int) -> Answered:
    """width: bytes of the hidden state of one token."""
    before = cluster.sent_bytes()
    with cluster.ask(prompt=prompt, max_tokens=NUM_TOKENS) as asked:
        answer = json.loads(asked.communicate()[0])
    after = cluster.sent_bytes()
    if "error" in answer:
        raise TandemError(answer["error"]["message"])
    return Answered(
        right=answer["tandem"]["token_ids"] == ids,
        workers=len(answer["tandem"]["workers"]),
        hidden_bytes=NUM_HOPS * (len(prompt) + NUM_TOKENS - 1) * width,
        cable_bytes=after[0] - before[0],
        wifi_bytes=after[1] - before[1],
    )


def _report(arguments: argparse.Namespace, found: Sequence[Answered]) -> Report:
    report = Report("spread")
    report.fact("machine", machine.describe())
    report.fact("model", f"{arguments.model}, over three hosts, of which one has it")
    report.fact("prompts", f"{len(found)} of {arguments.prompt_tokens:,} tokens, each answered with {NUM_TOKENS}")
    columns = ["answer", "mlx-lm's ids", "workers", "hidden states, MB", "all cables, MB", "wifi, MB"]
    rows = [
        [
            number,
            "yes" if each.right else "no",
            each.workers,
            each.hidden_bytes / 1e6,
            each.cable_bytes / 1e6,
            each.wifi_bytes / 1e6,
        ]
        for number, each in enumerate(found, 1)
    ]
    report.table("bytes sent by all hosts during an answer", columns, rows)
    wrong = sum(not each.right or each.workers != NUM_HOPS + 1 for each in found)
    report.check("wrong answers, or not over three", wrong, at_most=0)
    shares = [each.wifi_bytes / each.hidden_bytes for each in found]
    report.check("wifi / hidden states, median answer", statistics.median(shares), at_most=MOST_SHARE)
    report.data["answers"] = msgspec.to_builtins(found)
    return report


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--model", choices=known_models(), default="160m-float32")
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    raise SystemExit(main("spread", __doc__, options, run, quick={"model": "25m-float32", "rounds": 3}))
