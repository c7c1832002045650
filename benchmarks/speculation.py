"""One stream with guesses beside the same without: how much sooner an answer comes, and that it is the same.

The bundled model on clusters that take turns with the same questions, one of which guesses nothing: with the bundled draft, with a
draft that is always wrong, and with lookup, on answers that quote their prompt and on others. Times are from the request to the end of
its answer, as its HTTP client sees them. Two clusters alike differ by some percent for as long as they run, so that each pair is started
several times. Then answers of random samplings, of which every id is compared.
"""

import argparse
import contextlib
import json
import random
import shutil
import tempfile
import tomllib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import mlx.core as mx
import msgspec

from benchmarks.support import machine
from benchmarks.support.arithmetic import paired_ratios, turns
from benchmarks.support.client import Target, checked, stream
from benchmarks.support.contenders import WorkerLimits, tandem
from benchmarks.support.main import main
from benchmarks.support.reporting import Report

MODELS = machine.CHECKOUT / "models"
MODEL, DRAFT = MODELS / "tandem-demo", MODELS / "tandem-demo-draft"
STORIES = [
    f"Tell me a long story about a {animal}." for animal in ("fox", "dog", "cat", "bear", "owl", "horse", "rabbit")
]
PLAIN = "off"
# By task, and by side.
Seconds = dict[str, dict[str, list[float]]]


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """at_least: of the speed without guesses."""

    name: str
    strategy: str
    at_least: float
    max_tokens: int = 250
    quotes: bool = False


TASKS = {
    "draft": [
        Task(name="one device", strategy="single-device-cached", at_least=2.0),
        Task(name="two stages", strategy="distributed-cached", at_least=3.0),
        Task(name="two ranks", strategy="tensor-parallel", at_least=2.0),
        Task(name="no cache", strategy="distributed-no-cache", at_least=3.0, max_tokens=48),
    ],
    "wrong draft": [
        Task(name="one device", strategy="single-device-cached", at_least=0.97),
        Task(name="two stages", strategy="distributed-cached", at_least=0.97),
        Task(name="no cache", strategy="distributed-no-cache", at_least=0.97, max_tokens=48),
    ],
    "lookup": [
        Task(name="a quote, one device", strategy="single-device-cached", at_least=1.5, quotes=True),
        Task(name="a quote, two stages", strategy="distributed-cached", at_least=1.5, quotes=True),
        Task(name="no quote, one device", strategy="single-device-cached", at_least=0.98),
    ],
}


def wrong_draft(directory: Path) -> Path:
    """The bundled draft with other weights, of which it knows nothing."""
    shutil.copytree(DRAFT, directory)
    mx.random.seed(0)
    weights = mx.load(str(DRAFT / "model.safetensors"))
    assert isinstance(weights, dict)
    noise = {name: 0.02 * mx.random.normal(weight.shape) for name, weight in weights.items()}
    mx.save_safetensors(str(directory / "model.safetensors"), noise, metadata={"format": "mlx"})
    return directory


async def answer_s(target: Target, task: Task, messages: Sequence[dict[str, str]]) -> tuple[float, list[int]]:
    """Seconds for one answer, and its ids. Raises RuntimeError when it fails."""
    given = {"messages": list(messages), "temperature": 0, "strategy": task.strategy}
    found = checked(await stream(target, "", task.max_tokens, fields=given))
    return found.ended_at - found.sent_at, found.tandem["token_ids"]


async def messages_of(target: Target, task: Task, question: str) -> list[dict[str, str]]:
    """The question; where its answer is to quote, behind the same question and its answer."""
    asked = [{"role": "user", "content": question}]
    if not task.quotes:
        return asked
    async with httpx.AsyncClient(base_url=target.url, timeout=600, trust_env=False) as client:
        body = {"messages": asked, "max_tokens": task.max_tokens, "temperature": 0}
        said = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]["message"]["content"]
    return [*asked, {"role": "assistant", "content": said}, *asked]


async def compare(found: Seconds, side: str, sides: dict[str, Target], rounds: int, first: int) -> None:
    """One way to guess beside none, on each of its tasks; the first round does not count. first: number of the first question."""
    for task in TASKS[side]:
        seconds = found.setdefault(task.name, {name: [] for name in (PLAIN, side)})
        for number, order in enumerate(turns(list(sides), rounds + 1)):
            messages = await messages_of(sides[PLAIN], task, STORIES[(first + number) % len(STORIES)])
            ids = []
            for name in order:
                took_s, said = await answer_s(sides[name], task, messages)
                ids.append(said)
                if number:
                    seconds[name].append(took_s)
            if ids[0] != ids[1]:
                raise RuntimeError(f"{side}, {task.name}: the answers differ")


def add_ratios(report: Report, found: Seconds, side: str) -> None:
    """Of each task."""
    for task in TASKS[side]:
        seconds = found[task.name]
        ratio = paired_ratios(seconds[PLAIN], seconds[side])
        rows = [[name, *of_name] for name, of_name in seconds.items()]
        report.table(f"{side}, {task.name}: s", ["", *(f"round {n}" for n in range(1, len(seconds[side]) + 1))], rows)
        what = f"{side}, {task.name}: times the speed without guesses"
        report.check(what, None if ratio is None else ratio.median, at_least=task.at_least)
        report.data[f"{side}, {task.name}"] = seconds


def random_request(rng: random.Random, questions: Sequence[str]) -> dict[str, Any]:
    """A question with a sampling of any kind."""
    sampling: dict[str, Any] = {"temperature": rng.choice((0, 0, 0.5, 0.9, 1.3)), "seed": rng.randrange(1 << 30)}
    for name, values in (("top_p", (0.5, 0.9)), ("top_k", (5, 40)), ("repetition_penalty", (1.1, 1.4))):
        if rng.random() < 0.3:
            sampling[name] = rng.choice(values)
    if rng.random() < 0.3:
        sampling |= {"logprobs": True, "top_logprobs": rng.choice((0, 3))}
    if rng.random() < 0.3:
        sampling["stop"] = rng.choice((["the"], [" and"], ["model", "."]))
    strategy = rng.choice([task.strategy for task in TASKS["draft"]])
    messages = [{"role": "user", "content": rng.choice(questions)}]
    return {"messages": messages, "max_tokens": rng.choice((8, 30, 60)), "strategy": strategy, **sampling}


async def differing(sides: dict[str, Target], count: int) -> int:
    """How many of so many answers differ in anything that is said of them."""
    known = tomllib.loads((MODELS / "questions.toml").read_text(encoding="utf-8"))["question"]
    questions = [ask for question in known for ask in question["ask"]]
    rng, num_differing = random.Random(0), 0
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(httpx.AsyncClient(base_url=side.url, timeout=600, trust_env=False))
            for side in sides.values()
        ]
        for _ in range(count):
            body = random_request(rng, questions)
            found = [(await client.post("/v1/chat/completions", json=body)).json() for client in clients]
            said = [_said(answer) for answer in found]
            if said[0] != said[1]:
                num_differing += 1
                print("differs", json.dumps(body), said)
    return num_differing


def _said(answer: dict[str, Any]) -> list[Any]:
    if "error" in answer:
        raise RuntimeError(f"an answer failed: {answer['error']}")
    (choice,) = answer["choices"]
    scores = (choice.get("logprobs") or {}).get("content") or []
    rounded = [(each["token"], round(each["logprob"], 3), len(each["top_logprobs"])) for each in scores]
    usage = [answer["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    return [choice["message"]["content"], choice["finish_reason"], answer["tandem"]["token_ids"], usage, rounded]


@contextlib.asynccontextmanager
async def _beside_none(side: str, draft: str, report: Report, *, is_first: bool) -> AsyncIterator[dict[str, Target]]:
    """A cluster that guesses, and one that does not."""
    workers = [WorkerLimits(is_rank=True)] * 2
    async with (
        tandem(PLAIN, MODEL, workers, prefix=False, further={"speculation": {"draft": PLAIN}}) as plain,
        tandem(side, MODEL, workers, prefix=False, further={"speculation": {"draft": draft}}) as guessing,
    ):
        if is_first:
            report.fact(side, f"BLAS: {guessing.blas}; cores: {guessing.pinned}")
        yield {
            name: msgspec.structs.replace(running.target, chat=True)
            for name, running in ((PLAIN, plain), (side, guessing))
        }


async def run(arguments: argparse.Namespace) -> Report:
    """Each way to guess beside none. Raises RuntimeError when an answer fails, or is another one."""
    report = Report("speculation")
    report.fact("machine", machine.describe())
    report.fact(
        "model", "tandem-demo on two workers that both hold it whole, and a tensor group; draft tandem-demo-draft"
    )
    with tempfile.TemporaryDirectory(prefix="tandem-bench-") as folder:
        drafts = {"draft": str(DRAFT), "wrong draft": str(wrong_draft(Path(folder) / "wrong")), "lookup": "lookup"}
        for side, draft in drafts.items():
            found: Seconds = {}
            for start in range(arguments.starts):
                async with _beside_none(side, draft, report, is_first=not start) as sides:
                    await compare(found, side, sides, arguments.rounds, start * arguments.rounds)
                    if side == "draft" and arguments.answers and not start:
                        num_differing = await differing(sides, arguments.answers)
                        report.check(f"of {arguments.answers} answers, those that differ", num_differing, at_most=0)
            add_ratios(report, found, side)
    return report


def options(parser: argparse.ArgumentParser) -> None:
    """What this benchmark takes."""
    parser.add_argument("--starts", type=int, default=3, help="of each pair of clusters")
    parser.add_argument("--rounds", type=int, default=5, help="after each start")
    parser.add_argument("--answers", type=int, default=1000)


if __name__ == "__main__":
    raise SystemExit(main("speculation", __doc__, options, run, quick={"starts": 1, "rounds": 1, "answers": 10}))
