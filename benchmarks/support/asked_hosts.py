"""Requests to a cluster of hosts by every strategy by name and as its policy chooses, for `bench routing`: one cell of its grid after
the other, alone or beside streams.
"""

import contextlib
import itertools
import json
import random
import statistics
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from mlx_lm.utils import load_tokenizer

from protocol.errors import TandemError
from strategy.situation import Strategy
from tests.hosts.cluster import FIRST, HostsCluster
from tests.support.running_cluster import wait_until

WARM_UP = ((16, 8), (300, 32), (1000, 16), (64, 64), (600, 8), (100, 100))
TRIED = (
    Strategy.SINGLE_DEVICE_CACHED,
    Strategy.DISTRIBUTED_NO_CACHE,
    Strategy.DISTRIBUTED_CACHED,
    Strategy.DISTRIBUTED_PREFILL,
    Strategy.TENSOR_PARALLEL,
)
LONGEST_S = 40.0
MOST_TIMES = 8.0
BACKGROUND_TOKENS = 3000
_GUESSES = ("accepted_prediction_tokens", "rejected_prediction_tokens")
BEGUN_LINES = 40  # of a stream, two for each piece, before others are asked beside it


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. asked: the strategy by name, None where the policy chose. Seconds as predicted and as they were; guesses: tokens that
    were guessed for it.
    """

    model: str
    link: str
    streams: int
    prompt: int
    answer: int
    asked: str | None
    strategy: str
    workers: tuple[str, ...]
    total_s: float
    ttft_s: float
    predicted_total_s: float | None
    predicted_ttft_s: float | None
    guesses: int = 0
    is_warm_up: bool = False


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One place of the grid. seconds: by strategy, the median of what was measured; predicted: of those that were not run;
    chosen: by the policy.
    """

    model: str
    link: str
    streams: int
    prompt: int
    answer: int
    seconds: dict[str, float]
    predicted: dict[str, float]
    chosen: str

    @property
    def best_s(self) -> float:
        return min(self.seconds.values())

    def regret(self, strategy: str) -> float:
        """By how much it takes longer than the best one, as a share of that."""
        return (self.seconds | self.predicted)[strategy] / self.best_s - 1

    @property
    def by_thresholds(self) -> str:
        """What the documented rule takes."""
        within = self.prompt <= 100 and self.answer <= 50
        return Strategy.DISTRIBUTED_NO_CACHE if within else Strategy.SINGLE_DEVICE_CACHED


class Asking:
    """Requests to one cluster of one model over one link."""

    def __init__(self, cluster: HostsCluster, model: str, link: str, path: Path, generator: random.Random):
        self._cluster = cluster
        self._about = {"model": model, "link": link}
        self._random = generator
        tokenizer = load_tokenizer(path)
        self._vocabulary = range(100, min(2000, tokenizer.vocab_size))
        # Those of random models cannot be generated.
        self._no_end = {str(token): -100 for token in tokenizer.eos_token_ids} if model == "bundled" else {}
        self.answered: list[Answered] = []

    def __repr__(self) -> str:
        return f"Asking({self._about}, {len(self.answered)} answers)"

    def _body(self, prompt: int, answer: int) -> dict[str, Any]:
        ids = self._random.choices(self._vocabulary, k=prompt)
        return {"prompt": ids, "max_tokens": answer, "logit_bias": self._no_end, "strategy": None}

    def ask(
        self, prompt: int, answer: int, strategy: str | None, *, streams: int, is_warm_up: bool = False
    ) -> Answered:
        """One answer, by a strategy or by the policy."""
        with self._cluster.ask(**(self._body(prompt, answer) | {"strategy": strategy})) as asked:
            found = json.loads(asked.communicate()[0])
        if "error" in found:
            raise TandemError(found["error"]["message"])
        said, predicted = found["tandem"], found["tandem"].get("predicted", {})
        one = Answered(
            **self._about,
            streams=streams,
            prompt=prompt,
            answer=answer,
            asked=strategy,
            strategy=said["strategy"],
            workers=tuple(said["workers"]),
            total_s=said["total_s"],
            ttft_s=said["ttft_s"],
            predicted_total_s=predicted.get("total_s"),
            predicted_ttft_s=predicted.get("ttft_s"),
            guesses=sum(found["usage"].get("completion_tokens_details", {}).get(each, 0) for each in _GUESSES),
            is_warm_up=is_warm_up,
        )
        self.answered.append(one)
        return one

    def predictions(self, prompt: int, answer: int) -> dict[str, float]:
        """By strategy, of those that can run."""
        body = self._body(prompt, answer)

        def explained() -> dict[str, Any] | None:
            found = self._said("/v1/explain", "-H", "Content-Type: application/json", "-d", json.dumps(body))
            return found if "candidates" in found else None  # while a plan gives way to another

        found: dict[str, Any] = wait_until(explained, "a plan")
        return {
            each["strategy"]: each["predicted_total_s"]
            for each in found["candidates"]
            if each["predicted_total_s"] is not None
        }

    def _said(self, path: str, *options: str) -> dict[str, Any]:
        done = self._cluster.bed.run(FIRST, "curl", "-s", f"http://127.0.0.1:8420{path}", *options)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def warm_up(self) -> None:
        """So that every strategy's predictions have seen some answers."""
        for prompt, answer in WARM_UP:
            for strategy in self._worth_it(self.predictions(prompt, answer)):
                self.ask(prompt, answer, strategy, streams=0, is_warm_up=True)

    def _worth_it(self, predicted: dict[str, float]) -> list[str]:
        if not predicted:
            raise TandemError("nothing is predicted: is the policy `measured`, and were workers measured?")
        most_s = min(LONGEST_S, MOST_TIMES * min(predicted.values()))
        return [each for each in TRIED if predicted.get(each, most_s + 1) <= most_s]

    def cell(self, prompt: int, answer: int, rounds: int, *, streams: int) -> Cell:
        """Every strategy and the policy, `rounds` times each, beside so many streams."""
        with self.streams(streams):
            predicted = self.predictions(prompt, answer)
            worth_it = self._worth_it(predicted)
        times: dict[str, list[float]] = {}
        chosen: list[str] = []
        for _ in range(rounds):
            for strategy in self._random.sample([*worth_it, None], len(worth_it) + 1):
                with self.streams(streams):
                    one = self.ask(prompt, answer, strategy, streams=streams)
                times.setdefault(one.strategy, []).append(one.total_s)
                chosen += [one.strategy] if strategy is None else []
        cell = Cell(
            **self._about,
            streams=streams,
            prompt=prompt,
            answer=answer,
            seconds={strategy: statistics.median(found) for strategy, found in times.items()},
            predicted={strategy: seconds for strategy, seconds in predicted.items() if strategy not in times},
            chosen=max(chosen, key=lambda each: (chosen.count(each), -statistics.median(times[each]))),
        )
        print(
            f"{cell.model} {cell.link} {streams} streams: {prompt}, {answer}: {cell.chosen}, {cell.regret(cell.chosen):.1%}",
            flush=True,
        )
        return cell

    @contextlib.contextmanager
    def streams(self, number: int) -> Iterator[None]:
        """So many streams, which have begun; the policy places one after the other. They are gone behind the block."""
        with contextlib.ExitStack() as running:
            for _ in range(number):
                stream = running.enter_context(self._cluster.ask(**self._body(64, BACKGROUND_TOKENS), stream=True))
                assert stream.stdout is not None
                for _ in itertools.islice(stream.stdout, BEGUN_LINES):
                    pass
                running.enter_context(_read(stream.stdout))
                running.callback(stream.terminate)
            yield
        if number:
            wait_until(lambda: not self._said("/status")["requests"]["running"], "the streams' end")


@contextlib.contextmanager
def _read(lines: Iterable[str]) -> Iterator[None]:
    """Somebody reads what comes, to its end, which something else brings about."""
    reader = threading.Thread(target=lambda: [None for _ in lines], daemon=True)
    reader.start()
    try:
        yield
    finally:
        reader.join()
