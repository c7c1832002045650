"""TTFT turn by turn of a conversation with a long system prompt, with the prefix cache off and on, and after a restart.

Both clusters get the same turns in turn; the answers must be the same. A model with a chat template is talked to in
messages, as clients do; one without gets token ids.
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import tempfile
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.support import machine
from benchmarks.support.client import get_json
from benchmarks.support.contenders import Contender, WorkerLimits, tandem
from benchmarks.support.figures import Bar, bar_chart
from benchmarks.support.main import main
from benchmarks.support.random_models import ensure_model, known_models
from benchmarks.support.reporting import Report
from cluster.config import BUNDLED_MODEL

BUNDLED = "bundled"
NUM_TURNS = 10
SYSTEM_TOKENS = 1000
SAID_TOKENS = 30
ANSWER_TOKENS = 24
_WORDS = [
    "the",
    "of",
    "and",
    "water",
    "light",
    "river",
    "paper",
    "stone",
    "time",
    "number",
    "question",
    "answer",
    "worker",
    "layer",
    "cache",
    "token",
    "model",
]
_TIMEOUT_S = 300


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. ttft_s: as the cluster measured it; cached_tokens of prompt_tokens were not computed again."""

    ttft_s: float
    prompt_tokens: int
    cached_tokens: int
    token_ids: tuple[int, ...]


class Conversation:
    """Grows turn by turn, the same for every cluster that plays it."""

    def __init__(self, *, chat: bool, seed: int):
        self._random = random.Random(seed)
        self._chat = chat
        tools = json.dumps([{"name": self._words(2), "description": self._words(12)} for _ in range(8)])
        system = f"You are a helpful assistant. Tools: {tools} {self._words(SYSTEM_TOKENS * 2 // 3)}"
        self._messages = [{"role": "system", "content": system}]
        self._ids = [self._random.randrange(5, 1000) for _ in range(SYSTEM_TOKENS)]

    def _words(self, count: int) -> str:
        return " ".join(self._random.choices(_WORDS, k=count))

    def say(self) -> None:
        """The user's next message."""
        self._messages.append({"role": "user", "content": self._words(SAID_TOKENS)})
        self._ids += [self._random.randrange(5, 1000) for _ in range(SAID_TOKENS)]

    def hear(self, text: str, turn: Turn) -> None:
        """The answer to it."""
        self._messages.append({"role": "assistant", "content": text})
        self._ids += turn.token_ids

    def ask(self, contender: Contender) -> tuple[str, Turn]:
        """Send the conversation so far; the answer and what it took. Blocks."""
        path, prompt = (
            ("chat/completions", {"messages": self._messages}) if self._chat else ("completions", {"prompt": self._ids})
        )
        body = {**prompt, "model": "default", "max_tokens": ANSWER_TOKENS, "strategy": contender.target.strategy}
        request = urllib.request.Request(  # noqa: S310 - the cluster's own loopback address
            f"{contender.target.url}/v1/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
            answer: dict[str, Any] = json.load(response)
        choice = answer["choices"][0]
        turn = Turn(
            ttft_s=answer["tandem"]["ttft_s"],
            prompt_tokens=answer["usage"]["prompt_tokens"],
            cached_tokens=answer["usage"]["prompt_tokens_details"]["cached_tokens"],
            token_ids=tuple(answer["tandem"]["token_ids"]),
        )
        return choice["message"]["content"] if self._chat else choice["text"], turn


@contextlib.asynccontextmanager
async def _clusters(model: Path, stages: int, strategy: str, home: Path) -> AsyncIterator[list[Contender]]:
    workers = [WorkerLimits()] * stages
    async with (
        tandem("off", model, workers, strategy, prefix=False) as off,
        tandem("on", model, workers, strategy, home=home) as on,
    ):
        yield [off, on]


async def play(model: Path, stages: int, strategy: str, seed: int) -> list[tuple[Turn, Turn]]:
    """Each turn without and with the prefix cache; the last one after the second cluster was stopped and started.

    Raises RuntimeError when reuse changed an answer.
    """
    turns: list[tuple[Turn, Turn]] = []
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        home = Path(folder)
        async with _clusters(model, stages, strategy, home) as contenders:
            status = await get_json(contenders[0].target.url, "/status")
            conversation = Conversation(chat=status["model"]["has_chat_template"], seed=seed)
            for _ in range(NUM_TURNS):
                turns.append(await _turn(conversation, contenders))
        async with _clusters(model, stages, strategy, home) as contenders:
            for contender in contenders:  # the first request of a process pays for more than its prompt
                await asyncio.to_thread(Conversation(chat=False, seed=seed + 1).ask, contender)
            turns.append(await _turn(conversation, contenders))
    return turns


async def _turn(conversation: Conversation, contenders: list[Contender]) -> tuple[Turn, Turn]:
    conversation.say()
    (_, off), (text, on) = [await asyncio.to_thread(conversation.ask, contender) for contender in contenders]
    if off.token_ids != on.token_ids:
        raise RuntimeError("the prefix cache changed an answer")
    conversation.hear(text, on)
    return off, on


async def run(arguments: argparse.Namespace) -> Report:
    """All kinds of cluster in turn."""
    report = Report("conversation")
    report.fact("machine", machine.describe())
    bundled = arguments.model == BUNDLED
    model = machine.CHECKOUT / BUNDLED_MODEL if bundled else ensure_model(arguments.model, machine.model_folder())
    report.fact("model", arguments.model)
    bars = []
    for stages, strategy in [
        (1, "single-device-cached"),
        *[(count, "distributed-cached") for count in arguments.stages],
    ]:
        name = "one device" if stages == 1 else f"{stages} stages"
        played = await play(model, stages, strategy, arguments.seed)
        rows = [
            [
                f"{number}",
                on.prompt_tokens,
                off.ttft_s * 1000,
                on.ttft_s * 1000,
                on.ttft_s / off.ttft_s,
                on.cached_tokens,
            ]
            for number, (off, on) in enumerate(played, 1)
        ]
        rows[-1][0] = f"{len(played)}, after stop and start"
        columns = ["turn", "prompt tokens", "TTFT ms, off", "on", "on / off", "tokens reused"]
        report.table(f"{arguments.model}, {name}", columns, rows)
        ratios = [on.ttft_s / off.ttft_s for off, on in played]
        report.check(f"{name}: TTFT on / off, median of turns 2 to 10", statistics.median(ratios[1:-1]), at_most=0.15)
        report.check(f"{name}: turn 11 after a restart", ratios[-1], at_most=0.25)
        report.data[name] = [[msgspec.to_builtins(turn) for turn in pair] for pair in played]
        bars += [
            Bar(f"{name}, off", statistics.median(off.ttft_s * 1000 for off, _ in played[1:-1])),
            Bar(f"{name}, on", statistics.median(on.ttft_s * 1000 for _, on in played[1:-1]), 1),
        ]
    report.figure = bar_chart("TTFT of turns 2 to 10, median", "ms", bars)
    return report


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--model", default=BUNDLED, choices=[BUNDLED, *known_models()], metavar="SIZE-FORMAT")
    parser.add_argument("--stages", type=int, nargs="*", default=[2, 3])
    parser.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    raise SystemExit(main("conversation", __doc__, options, run, quick={"model": "25m-float32", "stages": [2]}))
