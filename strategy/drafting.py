"""How many tokens are guessed before a step of a sequence, by how often guesses came true and by what steps take.

A step with k guesses verifies them all at once: with a share a of guesses that come true it gives (1 - a^(k+1)) / (1 - a) tokens
on average (Leviathan, Kalman and Matias, 2023). Whether that is worth the longer step is decided anew for each step, from what
steps of that length took here; what never ran is thought to be cheap, so that it is tried. Guesses that are wrong are thus soon
asked for no more, but for one now and then, ever more rarely, in case they have become better.

Pure: no clock, no ids. Knows nothing of who guesses.
"""

from collections import deque
from statistics import fmean, median_low

# Tokens of a step with guesses. On many devices three rows cost more than four.
LENGTHS = (2, 4, 8, 12, 16)
# Of a step, what each token more is thought to add before that was measured, and at least: the least that was seen. Of two steps that
# were measured the longer one may have been the faster; that many guesses cost nothing does not follow.
_TOKEN_SHARE = 0.04
# Going on behind guesses pays where all of them come true about so often (0.6 where it was measured).
_LEAST_CERTAIN = 0.4
# Beyond the longest that was measured, of what the tokens before added, how much the next ones are thought to.
_HOPE = 0.7
# Of a step by itself, how long after the one before it one is thought to come back that goes on behind that.
_HOPED_SHARE = 0.6
# A longer step is taken only where it promises so much more.
_WORTH = 1.02
# Before the first guess: how often it comes true, and how many guesses that counts as.
_FIRST_RATE, _FIRST_WEIGHT = 0.7, 3.0
# What the route has seen counts as so many guesses of a sequence's own.
_ROUTE_WEIGHT = 2.0
_FADING, ROUTE_FADING = 0.9, 0.97
# Steps without guesses before one is tried again, where they were not worth it; longer by as much for each so many tokens that
# whoever guesses would have to read first.
_PATIENCE, _MOST_PATIENCE = 16, 2048
_UNREAD_TOKENS = 1024
# Of a route, without guesses: the first one is no measure, and of the others so many in a row are.
_IN_A_ROW = 4
_PLAIN_STEPS = 1 + _IN_A_ROW
# Of the last so many steps of one length the middle one counts; the first one is no measure.
_REMEMBERED = 5


class Acceptance:
    """How often guesses came true, later ones counting more. fading: of what is known, how much is left after a step."""

    def __init__(self, fading: float):
        self._fading = fading
        self._right = 0.0
        self._wrong = 0.0

    def __repr__(self) -> str:
        return f"Acceptance({self._right:.1f} right, {self._wrong:.1f} wrong)"

    def saw(self, num_guesses: int, num_right: int) -> None:
        """Of the guesses of one step the first so many came true; what lay behind the first wrong one says nothing."""
        self._right = self._right * self._fading + num_right
        self._wrong = self._wrong * self._fading + (num_right < num_guesses)

    def rate(self, expected: float, weight: float) -> float:
        """expected: what is thought before anything was seen, which counts as `weight` guesses."""
        return (self._right + expected * weight) / (self._right + self._wrong + weight)


class Acceptances:
    """The same by how much spoke for the guesses: what three tokens in common let expect says nothing of thirty."""

    def __init__(self, fading: float):
        self._fading = fading
        self._known: dict[int, Acceptance] = {}

    def __repr__(self) -> str:
        return f"Acceptances({self._known})"

    def of(self, support: int) -> Acceptance:
        """support: as `GuessSource.expects` says it, 1 at least; what is less than twice as much is the same."""
        return self._known.setdefault(support.bit_length(), Acceptance(self._fading))


class StepCosts:
    """What steps of each length took, in seconds for a unit of work that the caller counts in."""

    def __init__(self) -> None:
        self._seen: dict[int, deque[float]] = {}
        self._num_plain = 0
        self._in_a_row: list[float] = []
        self._found: dict[int, float] = {}  # since what was seen last

    def __repr__(self) -> str:
        return f"StepCosts({ {length: median_low(seen) for length, seen in self._known.items()} })"

    @property
    def _known(self) -> dict[int, deque[float]]:
        return {length: seen for length, seen in self._seen.items() if seen}

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of any length."""
        return not self._known

    @property
    def tells(self) -> bool:
        """Whether there were steps without guesses, which others are measured by."""
        return self._num_plain >= _PLAIN_STEPS

    def plain(self, length: int, seconds: float | None, units: float = 1.0) -> None:
        """A step without guesses took so long, None where that is not known. Such steps overlap, so only several in a row tell."""
        self._num_plain += 1
        if seconds is None or self._num_plain == 1:
            self._in_a_row.clear()
            return
        self._in_a_row.append(seconds / units)
        if len(self._in_a_row) == _IN_A_ROW:
            self._remember(length, fmean(self._in_a_row))
            self._in_a_row.clear()

    def guessed(self, length: int, seconds: float | None, units: float = 1.0) -> None:
        """A step of `length` tokens, guesses among them, took so long, guessing included. The first of a length is forgotten."""
        self._in_a_row.clear()
        if seconds is None:
            return
        if length in self._seen:
            self._remember(length, seconds / units)
        else:
            self._seen[length] = deque(maxlen=_REMEMBERED)

    def _remember(self, length: int, seconds: float) -> None:
        if seconds > 0:
            self._seen.setdefault(length, deque(maxlen=_REMEMBERED)).append(seconds)
            self._found.clear()

    def of(self, length: int) -> float:
        """For a unit of work: as seen, or as others let hope. Beside each other alone these mean something."""
        if length not in self._found:  # it is asked for before each step
            self._found[length] = self._thought(length)
        return self._found[length]

    def _thought(self, length: int) -> float:
        known = {other: median_low(seen) for other, seen in self._known.items()}
        if length in known:
            return known[length]
        if not known:
            return 1.0 + _TOKEN_SHARE * (length - 1)
        below, above = [n for n in known if n < length], [n for n in known if n > length]
        if not below:
            nearest = min(above)
            return known[nearest] * (1 + _TOKEN_SHARE * (length - 1)) / (1 + _TOKEN_SHARE * (nearest - 1))
        start = max(below)
        if above:
            end = min(above)
            return known[start] + (known[end] - known[start]) * (length - start) / (end - start)
        if start == 1:
            return known[1] * (1 + _TOKEN_SHARE * (length - 1))
        first = known.get(1, known[start] / (1 + _TOKEN_SHARE * (start - 1)))
        return known[start] + _HOPE * max(known[start] - first, 0.0) * (length - start) / (start - 1)


class ChainCosts:
    """What steps took of which others were on their way, too: from one that counted to the next. alone: what they take one by one."""

    def __init__(self, alone: StepCosts):
        self._alone = alone
        self.behind = StepCosts()  # another step with guesses, which was verified meanwhile
        self.anew = StepCosts()  # where what was on its way is stale, or nothing was

    def __repr__(self) -> str:
        return f"ChainCosts(behind {self.behind}, anew {self.anew})"

    def of(self, length: int, rate: float) -> float:
        """On average, with such a share of guesses that come true: only behind a step all of which did another one counts."""
        behind = _HOPED_SHARE * self._alone.of(length) if self.behind.is_empty else self.behind.of(length)
        anew = self._alone.of(length) + behind / 2 if self.anew.is_empty else self.anew.of(length)
        certain = rate**length
        return certain * behind + (1 - certain) * anew


class DraftPatience:
    """When to try one guess where guesses are not worth it: ever more rarely while it is wrong."""

    def __init__(self) -> None:
        self._num_steps = _PATIENCE
        self._num_since = 0  # steps since guesses were last asked for

    def __repr__(self) -> str:
        return f"DraftPatience({self._num_since} of {self._num_steps} steps)"

    def is_over(self, num_unread: int) -> bool:
        """num_unread: tokens that whoever guesses has to read first."""
        return self._num_since >= self._num_steps * (1 + num_unread / _UNREAD_TOKENS)

    def passed(self) -> None:
        """A step had no guesses."""
        self._num_since += 1

    def guessed(self, *, is_right: bool) -> None:
        """A step had guesses, the first of which came true or not."""
        if self._num_since < self._num_steps:  # they were thought to be worth it
            self._num_steps = _PATIENCE if is_right else self._num_steps
        elif is_right:
            self._num_steps = max(self._num_steps // 2, _PATIENCE)
        else:
            self._num_steps = min(2 * self._num_steps, _MOST_PATIENCE)
        self._num_since = 0


class DraftLength:
    """Of one sequence. costs, route: of its route, shared by all of its sequences that are guessed for in the same way; patience: too,
    where how often guesses come true depends on who guesses more than on the text; None for one of its own.

    grows: the whole sequence is computed in each step, so that a step costs by all of its tokens; one of them is due then. chain: what
    steps cost where the route goes on while they are verified; None where it cannot.
    """

    def __init__(
        self,
        costs: StepCosts,
        route: Acceptances,
        patience: DraftPatience | None = None,
        *,
        grows: bool,
        chain: ChainCosts | None = None,
    ):
        self._costs = costs
        self._chain = chain
        self._of_route, self._of_own = route, Acceptances(_FADING)
        self._grows = grows
        self._patience = patience or DraftPatience()
        self.expects(1)

    def expects(self, support: int) -> None:
        """So much speaks for the next guesses, as of `Acceptances`."""
        self._route, self._own = self._of_route.of(support), self._of_own.of(support)

    def __repr__(self) -> str:
        return f"DraftLength({self._of_own}, {self._patience})"

    def best(self, num_known: int, num_due: int, most: int, num_unread: int = 0) -> int:
        """How many tokens to guess before the next step; 0 for none.

        num_known: tokens of the sequence; num_due: of those, how many the step computes in any case; most: guesses at most;
        num_unread: of those known, how many whoever guesses has not read, beyond those that are new each time.
        """
        if not self._costs.tells:
            return 0
        guesses, pace = self._one_by_one(num_known, num_due, most)
        guesses = self._going_on(num_due, most, pace) or guesses
        if not guesses and self._patience.is_over(num_unread):
            return min(_counts(num_due, most), default=0)
        return guesses

    def further(self, num_known: int, most: int) -> int:
        """How many tokens to guess behind guesses that are being verified, for a step of these alone; 0 where it does not pay.

        num_known: tokens of the sequence, those guesses included; most: as in `best`.
        """
        _, pace = self._one_by_one(num_known, 1, most)
        return self._going_on(0, most, pace)

    @property
    def _rate(self) -> float:
        return self._own.rate(self._route.rate(_FIRST_RATE, _FIRST_WEIGHT), _ROUTE_WEIGHT)

    def _one_by_one(self, num_known: int, num_due: int, most: int) -> tuple[int, float]:
        """The best number of guesses where each step waits for the one before, and from how many tokens a second on another is better."""
        plain_s, rate = self._seconds(num_known, num_due), self._rate
        guesses, best_pace = 0, _WORTH / plain_s
        for count in _counts(num_due, most):
            least_s = plain_s * (1 + _TOKEN_SHARE * count)
            pace = _expected(rate, count) / max(self._seconds(num_known + count, num_due + count), least_s)
            if pace > best_pace:
                guesses, best_pace = count, pace * _WORTH
        return guesses, best_pace

    def _going_on(self, num_due: int, most: int, best_pace: float) -> int:
        """The best number of guesses where others follow while they are verified; 0 where that makes fewer tokens a second."""
        guesses, rate = 0, self._rate
        if self._chain is None:
            return 0
        for count in _counts(num_due, most):
            length = num_due + count
            if rate**length < _LEAST_CERTAIN:
                break
            pace = _expected(rate, length - 1) / self._chain.of(length, rate)
            if pace > best_pace:
                guesses, best_pace = count, pace * _WORTH
        return guesses

    def _seconds(self, num_tokens: int, num_computed: int) -> float:
        return self._costs.of(num_computed) * (num_tokens if self._grows else 1)

    def stepped(self, num_known: int, num_due: int, num_guesses: int, num_right: int, seconds: float | None) -> None:
        """A step came back, with guesses or without. seconds: None where they are not those of such a step alone."""
        if num_guesses:
            self._saw(num_guesses, num_right)
        else:
            self._patience.passed()
        tell = self._costs.guessed if num_guesses else self._costs.plain
        tell(num_due + num_guesses, seconds, num_known + num_guesses if self._grows else 1.0)

    def went_on(self, length: int, num_guesses: int, num_right: int, seconds: float | None, *, is_behind: bool) -> None:
        """A step of `length` tokens came back with which others were on their way. num_guesses: with the first of the next one;
        is_behind: it went on itself. seconds: since the last one that counted, None where that says nothing.
        """
        assert self._chain is not None
        self._saw(num_guesses, num_right)
        (self._chain.behind if is_behind else self._chain.anew).guessed(length, seconds)

    def _saw(self, num_guesses: int, num_right: int) -> None:
        self._own.saw(num_guesses, num_right)
        self._route.saw(num_guesses, num_right)
        self._patience.guessed(is_right=num_right > 0)


def _counts(num_due: int, most: int) -> list[int]:
    """Guesses with which a step has one of the lengths."""
    return [length - num_due for length in LENGTHS if 0 < length - num_due <= most]


def _expected(rate: float, guesses: int) -> float:
    """Tokens of a step."""
    return guesses + 1.0 if rate >= 1 else (1 - rate ** (guesses + 1)) / (1 - rate)


def may_guess(num_decoding: int, num_stages: int) -> bool:
    """Whether sequences are guessed for while so many decode on a route: where more do, batches use the stages better."""
    return num_decoding <= max(1, num_stages - 1)
