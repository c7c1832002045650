"""One trial of a cluster: requests run, something happens to it at a chosen moment, and what became of each is judged.

An answer is right when its ids are exactly those of the same request on a cluster that nothing happens to, and tied when
it parts from them at a token for which float32's rounding decides (see `ties`). A request that brings no token for HANG_S
counts as hung. Knows nothing of what happens: the caller strikes.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from benchmarks.support.arithmetic import longest_wait
from benchmarks.support.client import Answer, Target, get_json, stream
from benchmarks.support.contenders import Cluster
from benchmarks.support.ties import rounding_decides
from protocol.errors import TandemError

Moment = Literal["waiting", "prefill", "decode"]
Verdict = Literal["right", "tied", "wrong", "hung", "failed"]
VERDICTS: tuple[Verdict, ...] = ("right", "tied", "wrong", "hung", "failed")
FAULTS: tuple[Verdict, ...] = ("wrong", "hung", "failed")
MOMENTS: tuple[Moment, ...] = ("waiting", "prefill", "decode")
STRATEGIES = ("single-device-cached", "distributed-no-cache", "distributed-cached")
HANG_S = 30.0
READY_LIMIT_S = 120.0
HUNG = "no token for 30 s"
_WATCH_EVERY_S = 0.5
_POLL_S = 0.002
_STATUS_EVERY_S = 0.05
# Requests that wait when it happens were sent within this time before it, or are sent right after it.
_WAITING_S = 0.005
_UNDISTURBED_AT_ONCE = 8
# Of the bundled model: ids that are text, and the one that ends an answer.
_PROMPT_IDS = (5, 2048)
_END_TOKENS = (1,)
_LONGEST_UNCACHED = 160


class NotReady(TandemError):
    """A cluster did not come back."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. end_tokens: made impossible, so that the answer has its full length."""

    prompt: tuple[int, ...]
    max_tokens: int
    strategy: str
    temperature: float = 0.0
    seed: int | None = None
    end_tokens: tuple[int, ...] = ()

    @property
    def fields(self) -> dict[str, Any]:
        """What the request's body holds besides prompt and length."""
        fields: dict[str, Any] = {"temperature": self.temperature, "strategy": self.strategy}
        fields |= {"seed": self.seed} if self.seed is not None else {}
        return fields | {"logit_bias": {str(token): -100.0 for token in self.end_tokens}}


class Undisturbed(msgspec.Struct, frozen=True, kw_only=True):
    """The right answer to a request, and how long its first token took."""

    token_ids: tuple[int, ...]
    ttft_s: float


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """share: how far into the moment it happens, from 0 to 1; with "waiting" also the part of the requests sent before."""

    requests: tuple[Request, ...]
    moment: Moment
    share: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a trial. moment: where it was when it happened, None when it had ended.

    wait_s: the longest time without a token since it happened, and silence_s without a token or a report of its prefill;
    None when none came after it. resumed: whether it went on on another plan.
    """

    strategy: str
    verdict: Verdict
    moment: Moment | None
    resumed: bool
    wait_s: float | None
    silence_s: float | None
    token_at: tuple[float, ...]
    error: str | None

    @property
    def affected(self) -> bool:
        return self.moment is not None and self.resumed


def random_requests(
    generator: random.Random, count: int, *, strategies: Sequence[str] = STRATEGIES, longest: int = 800, most: int = 64
) -> tuple[Request, ...]:
    """Greedy and sampled requests to the bundled model, none with a prompt that another one has.

    longest: prompt, and most: tokens to generate, of the cached strategies. Without caches the time grows with the
    length's square: those are shorter.
    """
    found = []
    for _ in range(count):
        strategy = generator.choice(strategies)
        cached = strategy != "distributed-no-cache"
        length = generator.randint(8, longest if cached else min(longest, _LONGEST_UNCACHED))
        sampled = generator.random() < 0.5
        found.append(
            Request(
                prompt=tuple(generator.randrange(*_PROMPT_IDS) for _ in range(length)),
                max_tokens=generator.randint(most // 4, most)
                if cached
                else generator.randint(most // 12 + 1, most // 4),
                strategy=strategy,
                temperature=0.8 if sampled else 0.0,
                seed=generator.randrange(1 << 31) if sampled else None,
                end_tokens=_END_TOKENS,
            )
        )
    return tuple(found)


async def undisturbed(cluster: Cluster, requests: Sequence[Request]) -> dict[Request, Undisturbed]:
    """The right answers. Raises RuntimeError when a request fails though nothing happens."""
    waiting = list(dict.fromkeys(requests))
    found: dict[Request, Undisturbed] = {}

    async def client() -> None:
        while waiting:
            request = waiting.pop()
            answer = await asked(cluster, request, Answer(sent_at=0.0))
            if answer.error is not None:
                raise RuntimeError(f"an undisturbed request failed: {answer.error}")
            found[request] = Undisturbed(token_ids=ids_of(answer), ttft_s=answer.ttft_s or 0.0)

    await asyncio.gather(*(client() for _ in range(_UNDISTURBED_AT_ONCE)))
    return found


async def is_healthy(cluster: Cluster) -> bool:
    """Whether /health answers 200."""
    try:
        await get_json(cluster.url, "/health")
    except (OSError, ValueError):
        return False
    return True


def ids_of(answer: Answer) -> tuple[int, ...]:
    """The ids of a whole answer."""
    return tuple(answer.tandem.get("token_ids", ()))


async def asked(cluster: Cluster, request: Request, answer: Answer) -> Answer:
    """Run a request to its end, or until it has brought no token for HANG_S, which is its `error` then."""
    target = Target(name="Tandem", url=cluster.url, model=cluster.model)
    running = asyncio.create_task(
        stream(target, request.prompt, request.max_tokens, into=answer, fields=request.fields)
    )
    try:
        while not (await asyncio.wait({running}, timeout=_WATCH_EVERY_S))[0]:
            if time.perf_counter() - _last_sign(answer) > HANG_S:
                answer.error = HUNG
                break
    finally:
        running.cancel()
    return answer


def _last_sign(answer: Answer) -> float:
    progress = [moment for moment, _ in answer.progress_at[-1:]]
    return max([answer.sent_at, *answer.text_at[-1:], *progress])


async def run_trial(
    cluster: Cluster, trial: Trial, right: Mapping[Request, Undisturbed], strike: Callable[[], float]
) -> list[Outcome]:
    """Run the requests and `strike` at the trial's moment; it returns when it struck (time.perf_counter)."""
    answers = {request: Answer(sent_at=0.0) for request in trial.requests}
    before, after = _sent_before(trial), trial.requests[len(_sent_before(trial)) :]
    running = [asyncio.create_task(asked(cluster, request, answers[request])) for request in before]
    await _until_moment(trial, right, answers, running)
    struck = strike()
    running += [asyncio.create_task(asked(cluster, request, answers[request])) for request in after]
    await asyncio.gather(*running)
    return [_judge(request, answers[request], right[request], struck) for request in trial.requests]


def _sent_before(trial: Trial) -> tuple[Request, ...]:
    if trial.moment != "waiting":
        return trial.requests
    return trial.requests[: round(trial.share * len(trial.requests))]


async def _until_moment(
    trial: Trial,
    right: Mapping[Request, Undisturbed],
    answers: Mapping[Request, Answer],
    running: Sequence["asyncio.Task[Answer]"],
) -> None:
    if trial.moment == "waiting":
        await asyncio.sleep(trial.share * _WAITING_S)
    elif trial.moment == "prefill":
        await asyncio.sleep(trial.share * max(right[request].ttft_s for request in trial.requests))
    else:
        longest = max(trial.requests, key=lambda request: request.max_tokens)
        wanted = 1 + round(trial.share * (longest.max_tokens - 2))
        while len(answers[longest].text_at) < wanted and not all(task.done() for task in running):  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)  # an answer fills without telling anybody


def _judge(request: Request, answer: Answer, right: Undisturbed, struck: float) -> Outcome:
    return Outcome(
        strategy=request.strategy,
        verdict=verdict_of(request, answer, right),
        moment=_moment_at(answer, struck),
        resumed=bool(answer.tandem.get("resumed", 0)),
        wait_s=longest_wait(answer.text_at, struck),
        silence_s=longest_wait(sorted([*answer.text_at, *(moment for moment, _ in answer.progress_at)]), struck),
        token_at=tuple(answer.text_at),
        error=answer.error,
    )


def verdict_of(request: Request, answer: Answer, right: Undisturbed) -> Verdict:
    """What became of a request that has ended."""
    if answer.error == HUNG:
        return "hung"
    if answer.error is not None:
        return "failed"
    found = ids_of(answer)
    if found == right.token_ids:
        return "right"
    tied = rounding_decides(
        request.prompt,
        right.token_ids,
        found,
        temperature=request.temperature,
        seed=request.seed,
        end_tokens=request.end_tokens,
    )
    return "tied" if tied else "wrong"


def _moment_at(answer: Answer, struck: float) -> Moment | None:
    """Where a request was. Before its first sign of life, one that was only just sent counts as waiting."""
    if answer.error is None and answer.ended_at <= struck:
        return None
    if answer.text_at and answer.text_at[0] <= struck:
        return "decode"
    seen = [moment for moment, _ in answer.progress_at if moment <= struck]
    return "prefill" if seen or struck - answer.sent_at > 2 * _WAITING_S else "waiting"


async def until_ready(cluster: Cluster, num_workers: int, *, limit_s: float = READY_LIMIT_S) -> dict[str, Any]:
    """The status as soon as every worker is there and ready. Raises NotReady."""
    status: dict[str, Any] = {}
    try:
        async with asyncio.timeout(limit_s):
            while not (status and is_ready(status, num_workers)):
                await asyncio.sleep(_STATUS_EVERY_S)
                with contextlib.suppress(OSError, ValueError):
                    status = await get_json(cluster.url, "/status")
    except TimeoutError:
        states = {worker["name"]: worker["state"] for worker in status.get("workers", ())}
        raise NotReady(f"not ready again within {limit_s:g} s: {status.get('state')}, {states}") from None
    return status


def is_ready(status: Mapping[str, Any], num_workers: int) -> bool:
    """Whether the cluster serves with all its workers."""
    ready = [worker for worker in status["workers"] if worker["state"] == "ready"]
    return status["state"] == "ready" and len(ready) == num_workers
