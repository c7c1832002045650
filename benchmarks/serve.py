"""Drives one OpenAI-compatible server, or two in turn, and reports TTFT, ITL and output tokens per second.

    ./launch.sh bench serve                                     the running cluster
    ./launch.sh bench serve --clients 8 --vs http://host:8080   and another server, in alternating rounds, with ratios

Throughput counts the tokens that the server says it generated. ITL is the gap between two pieces of a stream that carry
text; tokens that brought no piece of their own, because a server sent several at once, are shown as coalesced.
"""

import argparse
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from benchmarks.support import machine
from benchmarks.support.client import Target, get_json
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.load import Load, Round, add_rounds, run_in_turns
from benchmarks.support.main import main
from benchmarks.support.prompts import PromptMaker
from benchmarks.support.reporting import Report
from protocol.errors import TandemError

DEFAULT_URL = "http://127.0.0.1:8420"


async def run(arguments: argparse.Namespace) -> Report:
    """Measure. Raises TandemError when a server does not answer."""
    targets = [await _target(arguments, arguments.url or running_cluster(), arguments.model, arguments.strategy)]
    if arguments.vs:
        second = await _target(arguments, arguments.vs, arguments.vs_model, arguments.vs_strategy)
        same = second.name == targets[0].name
        targets.append(msgspec.structs.replace(second, name=f"{second.name}, again") if same else second)
    load = Load(
        clients=arguments.clients,
        requests=arguments.requests or 2 * arguments.clients,
        prompt_tokens=arguments.prompt_tokens,
        max_tokens=arguments.max_tokens,
    )
    makers = {target.name: PromptMaker(arguments.seed, arguments.tokenizer) for target in targets}
    try:
        rounds = await run_in_turns(targets, load, arguments.rounds, makers)
    except RuntimeError as error:
        raise TandemError(str(error)) from None
    return _report(load, targets, rounds)


def running_cluster() -> str:
    """The address of the cluster in TANDEM_HOME, or the default one."""
    state = machine.home().read_state()
    return state.api if state is not None and state.is_coordinated else DEFAULT_URL


def _report(load: Load, targets: list[Target], rounds: dict[str, list[Round]]) -> Report:
    report = Report("serve")
    report.fact("machine", machine.describe())
    report.fact("load", f"{load.clients} clients, {load.requests} requests a round, {load.max_tokens} tokens each")
    for target in targets:
        last = rounds[target.name][-1]
        cached = f", {last.cached_tokens} tokens from a cache" if last.cached_tokens else ""
        report.fact(target.name, f"model {target.model}, {last.prompt_tokens} prompt tokens{cached}")
        for error in dict.fromkeys(error for found in rounds[target.name] for error in found.errors):
            report.fact(f"{target.name}, error", error)
    add_rounds(report, rounds)
    bars = [
        Bar(f"{name}, round {number}", found.tokens_per_s, colour)
        for colour, (name, of_name) in enumerate(rounds.items())
        for number, found in enumerate(of_name, 1)
    ]
    report.figure = bar_chart(f"Output, {load.clients} clients", "tokens per second", bars)
    return report


async def _target(arguments: argparse.Namespace, url: str, model: str | None, strategy: str | None) -> Target:
    url = url.rstrip("/").removesuffix("/v1")
    try:
        if model is None:
            model = (await get_json(url, "/v1/models", arguments.api_key))["data"][0]["id"]
    except (OSError, TimeoutError) as error:
        raise TandemError(f"nothing answers at {url} ({error}); start the server or give another --url") from None
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise TandemError(f"{url} does not name its models ({error}); give --model") from None
    assert model is not None
    return Target(
        name=urlsplit(url).netloc + (f" {strategy}" if strategy else ""),
        url=url,
        model=model,
        strategy=strategy,
        api_key=arguments.api_key,
        end_tokens=tuple(arguments.end_token),
        chat=arguments.chat,
    )


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--url", help="base URL without /v1; default: the running cluster")
    parser.add_argument("--vs", metavar="URL", help="a second server, driven in alternating rounds")
    parser.add_argument("--clients", type=_count, default=4, help="requests at a time")
    parser.add_argument("--requests", type=_count, help="requests in a round; default: twice the clients")
    parser.add_argument("--rounds", type=_count, default=3)
    parser.add_argument("--prompt-tokens", type=_count, default=128)
    parser.add_argument("--max-tokens", type=_count, default=64)
    parser.add_argument("--strategy", help="asked of the first server (Tandem's)")
    parser.add_argument("--vs-strategy", help="asked of the second server")
    parser.add_argument("--api-key")
    parser.add_argument("--model", help="default: the first of /v1/models")
    parser.add_argument("--vs-model", help="the same for the second server")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="makes prompts of exactly --prompt-tokens tokens")
    parser.add_argument("--end-token", type=int, action="append", default=[], metavar="ID", help="never generated")
    parser.add_argument("--chat", action="store_true", help="/v1/chat/completions instead of /v1/completions")
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    quick = {"rounds": 1, "prompt_tokens": 32, "max_tokens": 8}
    raise SystemExit(main("serve", __doc__, options, run, quick=quick))
