"""What answers took beside what was predicted, so that the next predictions are nearer; and how long answers become.

A prediction is  overhead + reading * read_s + step * first_s  to the first token and  step * step_s  for each further one. The
factors are of a strategy on a route, the overhead (HTTP, templates, the way to the head) of the cluster. Reading has a factor for
each size, to a factor of two, and what moves one moves its neighbours half as much, those beyond a quarter, and so on: many short
prompts that wait for others say little of how long a long one takes. An answer moves each by the share that it has in the prediction,
by no more than a factor of two of which a fifth counts (more of the first ones), and none leaves its bounds: so one slow answer
changes little and a worker that became slower is known after a few. Answers of a few tokens say less of steps: the first ones
meet others' prompts and what is done once. Where next tokens are guessed, steps take longer and give several
tokens, and whoever guesses reads the prompt first, behind the first token: all three are learned beside what plain steps take. Of
short answers few tokens are guessed, and long ones repeat themselves: so that takes a factor for each size of answer, too.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from strategy.cost import RouteCosts, Times
from strategy.vocabulary import Route

if TYPE_CHECKING:  # see `strategy.stage_speed.StageArrays`
    from strategy.sharing import Floats

_OVERHEAD_S = 0.005
_OVERHEAD_BOUNDS = (0.0005, 0.5)
_FACTOR_BOUNDS = (0.25, 4.0)
_SIZES = 32
_FOR_A_NEIGHBOUR = 0.5
_LARGEST_RATIO = 2.0
_MOST_TOKENS = 32.0
_LARGEST_STEP = 16.0
# Of the time to the first token, what reading the prompt takes whoever guesses: as a rule, for how much that counts, and at most. What
# earlier answers with guesses still count for after the next one.
_USUAL_READING, _USUAL_WEIGHT, _MOST_READING = 0.1, 0.05, 2.0
_GUESSES_MEMORY = 0.9
_WEIGHT = 0.2
# Behind the first: answers that have so many say all that one says of steps.
ENOUGH_TOKENS = 32
# Of how far predictions of others are off, in logarithms, how much is expected of one that was never seen.
_SHARED = 0.5
_REMEMBERED_LENGTHS = 16
_REMEMBERED_CLIENTS = 1024


class Factors(msgspec.Struct, frozen=True):
    """By how much longer than measured reading and steps take. num_seen: answers that it was learned from."""

    reading: float = 1.0
    step: float = 1.0
    num_seen: int = 0


AS_MEASURED = Factors()
_T = TypeVar("_T")
_NOTHING: Mapping[Route, Any] = {}


class Guessed(msgspec.Struct, frozen=True):
    """Steps with guesses: how many tokens one gives, and what a token takes of a plain step as measured. reading: what comes before them, of
    the time to the first token as measured; longer: by how much answers of a size take; usual: at which sizes most had guesses.
    """

    tokens: float
    token: float
    reading: float
    longer: tuple[float, ...] = (1.0,) * _SIZES
    usual: tuple[bool, ...] = (True,) * _SIZES

    def seconds(self, times: Times, num_tokens: int) -> float:
        """Of so many tokens behind the first one."""
        alike_s = self.reading * (times.read_s + times.first_s) + num_tokens * self.token * times.step_s
        return self.longer[_size(num_tokens)] * alike_s

    def are_usual(self, num_tokens: int) -> bool:
        """Whether something is guessed for most answers of about so many tokens."""
        return self.usual[_size(num_tokens)]


class Seen(msgspec.Struct, frozen=True):
    """What an answer took: its first token came after `ttft_s`, None where that says nothing, the `num_further` others after `step_s` each,
    None where there was none. tokens: that each step gave, None where nothing was guessed; may_guess: there were few enough streams for it.
    """

    ttft_s: float | None
    step_s: float | None = None
    tokens: float | None = None
    num_further: int = ENOUGH_TOKENS
    may_guess: bool = True


class _BySize:
    """Factors for sizes, to a factor of two: what moves one moves its neighbours half as much, and so on; one that was never seen has the
    nearest one's.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, int]] = {}  # by size, and from how many answers
        self.factors = (1.0,) * _SIZES

    def __repr__(self) -> str:
        return f"_BySize({self._known})"

    def saw(self, size: int, ratio: float) -> None:
        """An answer took so many times as long as its factor let expect."""
        factor, seen = self._known.get(size, (self.factors[size], 0))
        moved = ratio ** _weight(seen)
        known = self._known | {size: (factor, seen + 1)}
        self._known = {
            other: (_bounded(of * moved ** (_FOR_A_NEIGHBOUR ** abs(other - size)), *_FACTOR_BOUNDS), count)
            for other, (of, count) in known.items()
        }
        self.factors = tuple(_nearest(self._known, at)[0] for at in range(_SIZES))


class _LearnedGuesses:
    """Of one strategy on one route: least squares of the relative errors, later answers counting more. What is read before the first guess
    is thought to be as usual until answers say otherwise.
    """

    def __init__(self, tokens: float, token: float):
        self.found = Guessed(tokens, token, _USUAL_READING)
        self._longer = _BySize()
        self._shares: dict[int, float] = {}  # of answers with guesses, by size
        self._read_read = self._read_token = self._token_token = self._read_all = self._token_all = 0.0

    def __repr__(self) -> str:
        return f"_LearnedGuesses({self.found})"

    def saw(self, times: Times, tokens: float, seconds: float, num_further: int) -> None:
        """So many tokens behind the first one took so long; no answer counts for more than one that is so far off as may be."""
        expected_s = self.found.seconds(times, num_further)
        seconds = _bounded(seconds, expected_s / _LARGEST_RATIO, expected_s * _LARGEST_RATIO)
        read, token = (times.read_s + times.first_s) / seconds, num_further * times.step_s / seconds
        self._read_read = _GUESSES_MEMORY * self._read_read + read * read
        self._read_token = _GUESSES_MEMORY * self._read_token + read * token
        self._token_token = _GUESSES_MEMORY * self._token_token + token * token
        self._read_all = _GUESSES_MEMORY * self._read_all + read
        self._token_all = _GUESSES_MEMORY * self._token_all + token
        tokens = _bounded(_moved(self.found.tokens, tokens), 1.0, _MOST_TOKENS)
        found = Guessed(tokens, *self._solved(), self._longer.factors)
        self._longer.saw(_size(num_further), seconds / found.seconds(times, num_further))
        self.found = msgspec.structs.replace(found, longer=self._longer.factors)
        self.were(num_further, share=1.0)

    def were(self, num_further: int, *, share: float) -> None:
        """For one more answer of so many tokens something was guessed, or nothing: 1 or 0."""
        size = _size(num_further)
        before = self._shares.get(size, share)
        self._shares[size] = before + _WEIGHT * (share - before)
        usual = tuple(_nearest(self._shares, at) > 0.5 for at in range(_SIZES))
        self.found = msgspec.structs.replace(self.found, usual=usual)

    def _solved(self) -> tuple[float, float]:
        usual = _USUAL_WEIGHT * self._read_read
        read_read, read_all = self._read_read + usual, self._read_all + usual * _USUAL_READING
        determinant = read_read * self._token_token - self._read_token**2
        reading = _USUAL_READING
        if determinant > 0:  # else no prompt took any time
            reading = (read_all * self._token_token - self._token_all * self._read_token) / determinant
        reading = _bounded(reading, 0.0, _MOST_READING)
        token = (self._token_all - reading * self._read_token) / self._token_token
        return _bounded(token, 1 / _MOST_TOKENS, _LARGEST_STEP), reading


class _Learned:
    """Of one strategy on one route. by_size: its factors for prompts of so many bits."""

    def __init__(self, step: float):
        self._step = step
        self._num_seen = 0
        self._steps_seen = 0.0  # as many answers of enough tokens would have said as much
        self._readings = _BySize()
        self.by_size = (Factors(step=step),) * _SIZES

    def __repr__(self) -> str:
        return f"_Learned(step {self._step:.2f}, reading {self._readings})"

    def saw(self, size: int, reading_ratio: float | None, step_ratio: float, of_steps: float) -> None:
        """An answer took so many times as long as these factors let expect, by what is theirs of it; None where it does not say. of_steps:
        how much it says of them.
        """
        if reading_ratio is not None:
            self._readings.saw(size, reading_ratio)
        self._step = _bounded(self._step * step_ratio ** (of_steps * _weight(self._steps_seen)), *_FACTOR_BOUNDS)
        self._steps_seen += of_steps
        self._num_seen += 1
        self.by_size = tuple(Factors(reading, self._step, self._num_seen) for reading in self._readings.factors)


class Learning:
    """See the module. Strategies go by any name; read_tokens: how many were read before the last one of a prompt."""

    def __init__(self) -> None:
        self.overhead_s = _OVERHEAD_S
        self._learned: dict[Hashable, dict[Route, _Learned]] = {}
        self._guessed: dict[tuple[Hashable, Route], _LearnedGuesses] = {}
        self._steps: dict[Route, float] = {}  # the factor that was learned last, of any strategy
        self._elsewhere: dict[int, Factors] = {}  # by size, of what was never seen; since the last answer
        self._costs: Mapping[Route, RouteCosts] = {}

    def __repr__(self) -> str:
        return f"Learning({self._learned})"

    def renew(self, costs: Mapping[Route, RouteCosts]) -> None:
        """These routes there are now; what was learned of others, or of other stages, no longer counts."""
        same = {route for route, of in costs.items() if route in self._costs and of.stages == self._costs[route].stages}
        self._learned = {
            strategy: {route: learned for route, learned in of_routes.items() if route in same}
            for strategy, of_routes in self._learned.items()
        }
        self._steps = {route: step for route, step in self._steps.items() if route in same}
        self._guessed = {of: found for of, found in self._guessed.items() if of[1] in same}
        self._costs = costs
        self._elsewhere = {}

    def factors(self, strategy: Hashable, route: Route, read_tokens: int) -> Factors:
        """Of a strategy on a route, for a prompt of that size; of one that was never seen there, steps as others taught them there, and else
        half of what all others teach: what makes one slower than measured, as others' prompts in between, makes most so.
        """
        learned, size = self._learned.get(strategy, _NOTHING).get(route), _size(read_tokens)
        if learned is not None:
            return learned.by_size[size]
        elsewhere = self._shared_factors(size)
        return Factors(elsewhere.reading, self._steps[route]) if route in self._steps else elsewhere

    def factors_of_all(
        self, strategy: Hashable, places: Mapping[Route, int], read_tokens: int
    ) -> tuple["Floats", "Floats"]:
        """As `factors`, of many routes: of reading and of steps, by place."""
        import numpy as np

        elsewhere = self._shared_factors(_size(read_tokens))
        reading, step = np.full(len(places), elsewhere.reading), np.full(len(places), elsewhere.step)
        for route in self._steps:  # as of every route that anything was learned of
            if (place := places.get(route)) is not None:
                known = self.factors(strategy, route, read_tokens)
                reading[place], step[place] = known.reading, known.step
        return reading, step

    def ttft_s(self, times: Times, factors: Factors) -> float:
        """Seconds to the first token."""
        return self.overhead_s + factors.reading * times.read_s + factors.step * times.first_s

    def guessed(self, strategy: Hashable, route: Route) -> Guessed | None:
        """Of steps with guesses; None where none were seen."""
        learned = self._guessed.get((strategy, route))
        return None if learned is None else learned.found

    def saw(self, strategy: Hashable, route: Route, read_tokens: int, times: Times, seen: Seen) -> None:
        """An answer came. times: what was predicted for it, before any factor."""
        before = self.factors(strategy, route, read_tokens)
        reading_ratio = None if seen.ttft_s is None else self._read(times, before, seen.ttft_s)
        step_ratio, of_steps = 1.0, 0.0
        if seen.step_s is not None and times.step_s:
            guesses = self._guessed.get((strategy, route))
            if seen.tokens is not None:
                if guesses is None:
                    guesses = self._guessed[strategy, route] = _LearnedGuesses(seen.tokens, seen.step_s / times.step_s)
                guesses.saw(times, seen.tokens, seen.step_s * seen.num_further, seen.num_further)
            else:
                if guesses is not None and seen.may_guess:
                    guesses.were(seen.num_further, share=0.0)
                ratio = seen.step_s / times.step_s / before.step
                step_ratio = _bounded(ratio, 1 / _LARGEST_RATIO, _LARGEST_RATIO)
                of_steps = min(seen.num_further / ENOUGH_TOKENS, 1.0)
        learned = self._learned.setdefault(strategy, {}).setdefault(route, _Learned(before.step))
        learned.saw(_size(read_tokens), reading_ratio, step_ratio, of_steps)
        self._steps[route] = learned.by_size[0].step
        self._elsewhere = {}

    def _shared_factors(self, size: int) -> Factors:
        """What others' factors let expect of a route that was never seen."""
        if size not in self._elsewhere:
            known = [learned.by_size[size] for of_routes in self._learned.values() for learned in of_routes.values()]
            reading, step = ([each.reading for each in known], [each.step for each in known])
            self._elsewhere[size] = Factors(_shared(reading), _shared(step)) if known else AS_MEASURED
        return self._elsewhere[size]

    def _read(self, times: Times, factors: Factors, ttft_s: float) -> float:
        """A first token came: how much longer reading took than predicted, by its share in that; the overhead has its own."""
        predicted_s = self.ttft_s(times, factors)
        ratio = _bounded(ttft_s / predicted_s, 1 / _LARGEST_RATIO, _LARGEST_RATIO)
        overhead_s = self.overhead_s * ratio ** (_WEIGHT * self.overhead_s / predicted_s)
        self.overhead_s = _bounded(overhead_s, *_OVERHEAD_BOUNDS)
        return ratio ** (factors.reading * times.read_s / predicted_s)


def _nearest(known: Mapping[int, _T], size: int) -> _T:
    """What is known of the size that is nearest to this one."""
    return known[min(known, key=lambda other: (abs(other - size), other))]


def _shared(factors: Iterable[float]) -> float:
    """As far off as is expected where these are so."""
    return math.exp(_SHARED * fmean(map(math.log, factors)))


def _moved(value: float, seen: float) -> float:
    return value * _bounded(seen / value, 1 / _LARGEST_RATIO, _LARGEST_RATIO) ** _WEIGHT


def _weight(num_seen: float) -> float:
    """What the next answer counts for."""
    return max(_WEIGHT, 1 / (num_seen + 2))


def _size(read_tokens: int) -> int:
    """Sizes differ where the next power of two does."""
    return min(read_tokens.bit_length(), _SIZES - 1)


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
