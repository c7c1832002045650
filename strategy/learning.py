"""What answers took beside what was predicted, so that the next predictions are nearer; and how long answers become.

A prediction is  overhead + reading * read_s + step * first_s  to the first token and  step * step_s  for each further one. The
factors are of a strategy on a route, the overhead (HTTP, templates, the way to the head) of the cluster. An answer moves each
by the share that it has in the prediction, by no more than a factor of two of which a fifth counts, and none leaves its bounds:
so one slow answer changes little and a worker that became slower is known after a few.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping

import msgspec

from strategy.cost import RouteCosts, Times
from strategy.vocabulary import Route

_OVERHEAD_S = 0.005
_OVERHEAD_BOUNDS = (0.0005, 0.5)
_FACTOR_BOUNDS = (0.25, 4.0)
_LARGEST_RATIO = 2.0
_WEIGHT = 0.2
_REMEMBERED_LENGTHS = 16
_REMEMBERED_CLIENTS = 1024


class Factors(msgspec.Struct, frozen=True):
    """By how much longer than measured reading and steps take. num_seen: answers that it was learned from."""

    reading: float = 1.0
    step: float = 1.0
    num_seen: int = 0


AS_MEASURED = Factors()


class Learning:
    """See the module. Strategies go by any name."""

    def __init__(self) -> None:
        self.overhead_s = _OVERHEAD_S
        self._factors: dict[tuple[Hashable, Route], Factors] = {}
        self._costs: Mapping[Route, RouteCosts] = {}

    def __repr__(self) -> str:
        return f"Learning({self._factors})"

    def renew(self, costs: Mapping[Route, RouteCosts]) -> None:
        """These routes there are now; what was learned of others, or of other stages, no longer counts."""
        self._factors = {
            (strategy, route): factors
            for (strategy, route), factors in self._factors.items()
            if route in costs and route in self._costs and costs[route].stages == self._costs[route].stages
        }
        self._costs = costs

    def factors(self, strategy: Hashable, route: Route) -> Factors:
        """Of a strategy on a route."""
        return self._factors.get((strategy, route), AS_MEASURED)

    def ttft_s(self, times: Times, factors: Factors) -> float:
        """Seconds to the first token."""
        return self.overhead_s + factors.reading * times.read_s + factors.step * times.first_s

    def saw(self, strategy: Hashable, route: Route, times: Times, ttft_s: float, step_s: float | None) -> None:
        """An answer's first token came after `ttft_s`, and the others after `step_s` each, None where there was none.

        times: what was predicted for it, before any factor.
        """
        before = self.factors(strategy, route)
        weight = max(_WEIGHT, 1 / (before.num_seen + 2))
        predicted_s = self.ttft_s(times, before)
        ratio = _bounded(ttft_s / predicted_s, 1 / _LARGEST_RATIO, _LARGEST_RATIO)
        of_overhead = self.overhead_s / predicted_s
        of_reading = before.reading * times.read_s / predicted_s
        self.overhead_s = _bounded(self.overhead_s * ratio ** (_WEIGHT * of_overhead), *_OVERHEAD_BOUNDS)
        reading = before.reading * ratio ** (weight * of_reading)
        step = before.step
        if step_s is not None and times.step_s:
            ratio = _bounded(step_s / (step * times.step_s), 1 / _LARGEST_RATIO, _LARGEST_RATIO)
            step *= ratio**weight
        bounded = _bounded(reading, *_FACTOR_BOUNDS), _bounded(step, *_FACTOR_BOUNDS)
        self._factors[strategy, route] = Factors(*bounded, before.num_seen + 1)


class AnswerLengths:
    """How many tokens answers have, by conversation and by client, where max_tokens is only the most that there may be."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, deque[tuple[int, bool]]] = OrderedDict()

    def __repr__(self) -> str:
        return f"AnswerLengths({len(self._seen)} clients and conversations)"

    def saw(self, names: tuple[str, ...], num_tokens: int, *, stopped: bool) -> None:
        """An answer of one of these ended. stopped: by itself, not at max_tokens."""
        for name in names:
            self._seen.setdefault(name, deque(maxlen=_REMEMBERED_LENGTHS)).append((num_tokens, stopped))
            self._seen.move_to_end(name)
        while len(self._seen) > _REMEMBERED_CLIENTS:
            self._seen.popitem(last=False)

    def expected(self, names: tuple[str, ...], max_tokens: int) -> int:
        """Tokens to come: the mean of what the first known of `names` had; answers that were cut would have gone on."""
        seen = next((self._seen[name] for name in names if name in self._seen), None)
        if seen is None:
            return max_tokens
        lengths = [min(num_tokens, max_tokens) if stopped else max_tokens for num_tokens, stopped in seen]
        return max(round(math.fsum(lengths) / len(lengths)), 1)


def _bounded(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)
