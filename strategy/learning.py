"""What answers took beside what was predicted, so that the next predictions are nearer; and how long answers become.

A prediction is  overhead + reading * read_s + step * first_s  to the first token and  step * step_s  for each further one. The
factors are of a strategy on a route, the overhead (HTTP, templates, the way to the head) of the cluster. Reading has another factor
for each size, to a factor of two, so that what short prompts teach does not make long ones worse. An answer moves each by the share
that it has in the prediction, by no more than a factor of two of which a fifth counts (more of the first ones), and none leaves its
bounds: so one slow answer changes little and a worker that became slower is known after a few.
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
_SIZE_BOUNDS = (0.5, 2.0)
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
_Size = tuple[Hashable, Route, int]


class Learning:
    """See the module. Strategies go by any name; read_tokens: how many were read before the last one of a prompt."""

    def __init__(self) -> None:
        self.overhead_s = _OVERHEAD_S
        self._factors: dict[tuple[Hashable, Route], Factors] = {}
        self._of_size: dict[_Size, Factors] = {}  # what `reading` is off by at one size
        self._costs: Mapping[Route, RouteCosts] = {}

    def __repr__(self) -> str:
        return f"Learning({self._factors})"

    def renew(self, costs: Mapping[Route, RouteCosts]) -> None:
        """These routes there are now; what was learned of others, or of other stages, no longer counts."""
        same = {route for route, of in costs.items() if route in self._costs and of.stages == self._costs[route].stages}
        self._factors = {of: factors for of, factors in self._factors.items() if of[1] in same}
        self._of_size = {of: factors for of, factors in self._of_size.items() if of[1] in same}
        self._costs = costs

    def rough(self, strategy: Hashable, route: Route) -> Factors:
        """Of a strategy on a route, whatever the size."""
        return self._factors.get((strategy, route), AS_MEASURED)

    def factors(self, strategy: Hashable, route: Route, read_tokens: int) -> Factors:
        """Of a strategy on a route, for a prompt of that size."""
        rough = self.rough(strategy, route)
        of_size = self._of_size.get(_size(strategy, route, read_tokens))
        return Factors(rough.reading * of_size.reading, rough.step, rough.num_seen) if of_size else rough

    def ttft_s(self, times: Times, factors: Factors) -> float:
        """Seconds to the first token."""
        return self.overhead_s + factors.reading * times.read_s + factors.step * times.first_s

    def saw(
        self, strategy: Hashable, route: Route, read_tokens: int, times: Times, ttft_s: float, step_s: float | None
    ) -> None:
        """An answer's first token came after `ttft_s`, and the others after `step_s` each, None where there was none.

        times: what was predicted for it, before any factor.
        """
        before = self.rough(strategy, route)
        ratio, of_overhead, of_reading = self._missed(times, before, ttft_s)
        self.overhead_s = _bounded(self.overhead_s * ratio ** (_WEIGHT * of_overhead), *_OVERHEAD_BOUNDS)
        reading = before.reading * ratio ** (_weight(before) * of_reading)
        step = before.step
        if step_s is not None and times.step_s:
            off = _bounded(step_s / (step * times.step_s), 1 / _LARGEST_RATIO, _LARGEST_RATIO)
            step *= off ** _weight(before)
        bounded = _bounded(reading, *_FACTOR_BOUNDS), _bounded(step, *_FACTOR_BOUNDS)
        self._factors[strategy, route] = Factors(*bounded, before.num_seen + 1)
        self._saw_size(_size(strategy, route, read_tokens), times, ttft_s)

    def _saw_size(self, size: _Size, times: Times, ttft_s: float) -> None:
        """What is still missed once the rough factors have moved."""
        before = self._of_size.get(size, AS_MEASURED)
        rough = self.rough(*size[:2])
        now = Factors(rough.reading * before.reading, rough.step)
        ratio, _, of_reading = self._missed(times, now, ttft_s)
        reading = before.reading * ratio ** (_weight(before) * of_reading)
        self._of_size[size] = Factors(_bounded(reading, *_SIZE_BOUNDS), 1.0, before.num_seen + 1)

    def _missed(self, times: Times, factors: Factors, ttft_s: float) -> tuple[float, float, float]:
        """How much longer it took than predicted, within bounds, and the shares of the overhead and of reading in that."""
        predicted_s = self.ttft_s(times, factors)
        ratio = _bounded(ttft_s / predicted_s, 1 / _LARGEST_RATIO, _LARGEST_RATIO)
        return ratio, self.overhead_s / predicted_s, factors.reading * times.read_s / predicted_s


def _weight(seen: Factors) -> float:
    """What the next answer counts for."""
    return max(_WEIGHT, 1 / (seen.num_seen + 2))


def _size(strategy: Hashable, route: Route, read_tokens: int) -> _Size:
    """Sizes differ where the next power of two does."""
    return strategy, route, read_tokens.bit_length()


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
