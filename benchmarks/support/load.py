"""Rounds of load: some clients at a time, each asking again as soon as it is answered, and what the servers made of it."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence

import msgspec

from benchmarks.support.arithmetic import gaps, paired_ratios, summarize, turns
from benchmarks.support.client import Answer, Target, stream
from benchmarks.support.prompts import PromptMaker
from benchmarks.support.reporting import Report


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One round: `requests` prompts of `prompt_tokens`, `max_tokens` to generate, `clients` at a time."""

    clients: int
    requests: int
    prompt_tokens: int
    max_tokens: int


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What one round gave. Seconds; tokens as the server counted them.

    coalesced_tokens: tokens that came together with another one in a piece of the stream, so that the gaps between
    pieces say nothing of them. client_share: of a core, what measuring took; strategies: how many answers by each, of Tandem.
    """

    wall_s: float
    output_tokens: int
    tokens_per_s: float
    ttft_s: tuple[float, ...]
    itl_s: tuple[float, ...]
    coalesced_tokens: int
    prompt_tokens: int | None
    cached_tokens: int
    errors: tuple[str, ...]
    client_share: float
    strategies: dict[str, int] = {}


async def run_round(target: Target, load: Load, prompts: Sequence[str]) -> Round:
    """Send all prompts, `load.clients` at a time."""
    waiting = list(reversed(prompts))
    answers: list[Answer] = []

    async def client() -> None:
        while waiting:
            answers.append(await stream(target, waiting.pop(), load.max_tokens))

    cpu, started = time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as clients:
        for _ in range(load.clients):
            clients.create_task(client())
    wall_s = time.perf_counter() - started
    return _round(answers, wall_s, (time.process_time() - cpu) / wall_s)


def _round(answers: Sequence[Answer], wall_s: float, client_share: float) -> Round:
    good = [answer for answer in answers if answer.error is None]
    tokens = sum(answer.num_tokens for answer in good)
    return Round(
        wall_s=wall_s,
        output_tokens=tokens,
        tokens_per_s=tokens / wall_s,
        ttft_s=tuple(answer.ttft_s for answer in good if answer.ttft_s is not None),
        itl_s=tuple(gap for answer in good for gap in gaps(answer.text_at)),
        coalesced_tokens=sum(max(answer.num_tokens - len(answer.text_at), 0) for answer in good),
        prompt_tokens=good[0].prompt_tokens if good else None,
        cached_tokens=sum(answer.cached_tokens for answer in good),
        errors=tuple(answer.error for answer in answers if answer.error is not None),
        client_share=client_share,
        strategies=Counter(answer.tandem["strategy"] for answer in good if answer.tandem),
    )


async def run_in_turns(
    targets: Sequence[Target], load: Load, num_rounds: int, makers: dict[str, PromptMaker]
) -> dict[str, list[Round]]:
    """Alternating rounds, after one request to each target that does not count; by target name.

    makers: one for each target, equally seeded, so that all get the same prompts and no prompt comes twice to one.
    """
    by_name = {target.name: target for target in targets}
    rounds: dict[str, list[Round]] = {name: [] for name in by_name}
    for target in targets:
        await warm_up(target, load, makers[target.name])
    for order in turns(list(by_name), num_rounds):
        for name in order:
            prompts = [makers[name].make(load.prompt_tokens) for _ in range(load.requests)]
            rounds[name].append(await run_round(by_name[name], load, prompts))
    return rounds


async def warm_up(target: Target, load: Load, maker: PromptMaker) -> None:
    """As many short requests as there will be clients. Raises RuntimeError when the server cannot serve them."""
    prompts = [maker.make(load.prompt_tokens) for _ in range(load.clients)]
    short = msgspec.structs.replace(load, requests=load.clients, max_tokens=min(load.max_tokens, 8))
    found = await run_round(target, short, prompts)
    if found.errors:
        raise RuntimeError(f"{target.name} at {target.url} does not serve: {found.errors[0]}")


def add_rounds(report: Report, rounds: dict[str, list[Round]], *, num_ours: int = 1) -> None:
    """The table of all rounds taken together, and the ratios of each of the first `num_ours` sides to the rest, round by
    round.
    """
    rows = []
    for name, of_name in rounds.items():
        ttft = summarize([value for found in of_name for value in found.ttft_s])
        itl = summarize([value for found in of_name for value in found.itl_s])
        speed = summarize([found.tokens_per_s for found in of_name])
        tokens = sum(found.output_tokens for found in of_name)
        together = sum(found.coalesced_tokens for found in of_name)
        rows.append(
            [
                name,
                speed.median if speed else None,
                *(value * 1000 if ttft else None for value in ((ttft.median, ttft.p99) if ttft else (0, 0))),
                *(value * 1000 if itl else None for value in ((itl.median, itl.p99) if itl else (0, 0))),
                f"{together / tokens:.0%}" if tokens else None,
                sum(len(found.errors) for found in of_name),
                f"{max(found.client_share for found in of_name):.0%}",
            ]
        )
    columns = ["server", "tokens/s", "TTFT ms", "p99", "ITL ms", "p99", "coalesced", "errors", "client"]
    report.table("median of the rounds; TTFT and ITL over all requests", columns, rows)
    speeds = {name: [found.tokens_per_s for found in of_name] for name, of_name in rounds.items()}
    ratio_rows = []
    for name, other in itertools.product(list(rounds)[:num_ours], list(rounds)[num_ours:]):
        found = paired_ratios(speeds[name], speeds[other])
        if found is not None:
            ratio_rows.append([f"{name} / {other}", found.median, found.smallest, found.largest])
    if ratio_rows:
        report.table("tokens/s, ratio round by round", ["ratio", "median", "smallest", "largest"], ratio_rows)
    report.data["rounds"] = {
        name: [msgspec.to_builtins(found) for found in of_name] for name, of_name in rounds.items()
    }


def speed_ratio(rounds: dict[str, list[Round]], ours: str, theirs: str) -> float | None:
    """Median over the rounds of our tokens per second over theirs."""
    found = paired_ratios([a.tokens_per_s for a in rounds[ours]], [b.tokens_per_s for b in rounds[theirs]])
    return found.median if found else None
