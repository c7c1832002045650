"""Resident memory of each worker for a model of 1 GB over two and four workers, none of which has room for all of it.

Overhead is what a worker has resident beyond the bytes of its own layers (by the headers of the weight files): Python,
MLX, and what a short request through all stages needs. Two more are a tensor group, each with its part of every layer and all that is
whole, beside its stage.
"""

import argparse
import math

import msgspec
import psutil

from benchmarks.support import machine
from benchmarks.support.client import get_json, stream
from benchmarks.support.contenders import WorkerLimits, tandem
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.footprint import footprint_bytes
from benchmarks.support.main import main
from benchmarks.support.prompts import PromptMaker
from benchmarks.support.random_models import ensure_model, known_models
from benchmarks.support.reporting import Report
from cluster.planning.model_files import read_sizes
from strategy.partition import ModelSizes

MAX_OVERHEAD_BYTES = 350e6
# A limit for each worker, as a share of the model: above an even part with its headroom, below the whole.
LIMIT_SHARES = {2: 0.7, 3: 0.5, 4: 0.4}
# Of ranks: above a part and a stage, below a part and the whole.
RANKS, RANK_LIMIT_SHARE = 2, 1.3


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. Bytes: resident, and of its layers [start, end) with its part of all layers, where it is a rank."""

    worker: str
    layers: tuple[int, int]
    resident: int
    weights: int

    @property
    def overhead(self) -> int:
        return self.resident - self.weights


async def measure(
    arguments: argparse.Namespace, model_name: str, num_workers: int, *, are_ranks: bool = False
) -> tuple[list[Resident], ModelSizes]:
    """Resident memory after one request. Raises RuntimeError when it fails or a worker holds the full model."""
    model = ensure_model(model_name, machine.model_folder())
    whole = sum(file.stat().st_size for file in model.glob("model*.safetensors"))
    share = RANK_LIMIT_SHARE if are_ranks else LIMIT_SHARES[num_workers]
    limits = [WorkerLimits(memory_limit_bytes=int(whole * share), is_rank=are_ranks)] * num_workers
    async with tandem("Tandem", model, limits, "tensor-parallel" if are_ranks else None) as cluster:
        prompt = PromptMaker(0, model).make(arguments.prompt_tokens)
        answer = await stream(cluster.target, prompt, arguments.max_tokens)
        if answer.error is not None:
            raise RuntimeError(answer.error)
        status = await get_json(cluster.target.url, "/status")
        if any(worker["holds_full_model"] for worker in status["workers"]):
            raise RuntimeError("a worker holds the full model, which its limit should have prevented")
        sizes = read_sizes(model, status["model"]["layers"])
        part = rank_bytes(sizes, num_workers) if are_ranks else 0
        found = [
            Resident(
                worker=worker["name"],
                layers=(worker["layers"][0], worker["layers"][1]),
                resident=footprint_bytes(psutil.Process(worker["pid"])),
                weights=sizes.stage(*worker["layers"]) + part,
            )
            for worker in status["workers"]
        ]
    return found, sizes


def rank_bytes(sizes: ModelSizes, ranks: int) -> int:
    """Of one of so many ranks: its part of all layers, and what is whole on each."""
    return math.ceil(sum(sizes.layers) / ranks) + sizes.embedding + sizes.head


async def run(arguments: argparse.Namespace) -> Report:
    """Two and four workers, then ranks."""
    report = Report("memory")
    report.fact("machine", machine.describe())
    rows, bars = [], []
    settings = [(arguments.model, count, False) for count in arguments.workers] + [(arguments.rank_model, RANKS, True)]
    for model, count, are_ranks in settings:
        found, sizes = await measure(arguments, model, count, are_ranks=are_ranks)
        who = f"{count} ranks" if are_ranks else f"{count} workers"
        report.fact(f"model of {who}", f"{model}, random weights, {sizes.total / 1e6:,.0f} MB")
        for index, of_worker in enumerate(found):
            layers = f"{of_worker.layers[0]}-{of_worker.layers[1] - 1}"
            megabytes = [value / 1e6 for value in (of_worker.weights, of_worker.resident, of_worker.overhead)]
            held = f"{layers} and its part of all" if are_ranks else layers
            rows.append([f"{of_worker.worker} of {who}", held, *megabytes])
            bars.append(Bar(f"{who}, worker {index}", of_worker.overhead / 1e6, count + are_ranks))
        largest = max(of_worker.overhead for of_worker in found)
        report.check(f"MB beyond its weights, {who}, the largest", largest / 1e6, at_most=MAX_OVERHEAD_BYTES / 1e6)
        report.data[who] = [msgspec.to_builtins(of_worker) for of_worker in found]
    report.table("after one request", ["worker", "layers", "weights MB", "resident MB", "beyond MB"], rows)
    report.figure = bar_chart("Resident beyond a worker's own weights", "MB", bars)
    return report


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--model", default="500m-float16", choices=known_models(), metavar="SIZE-FORMAT")
    parser.add_argument("--rank-model", default="160m-float32", choices=known_models(), metavar="SIZE-FORMAT")
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4], choices=sorted(LIMIT_SHARES))
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=4)


if __name__ == "__main__":
    raise SystemExit(main("memory", __doc__, options, run, quick={"model": "25m-float32", "rank_model": "25m-float32"}))
