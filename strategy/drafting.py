"""How many tokens are guessed before a step of a sequence, by how often guesses came true and by what steps take.

A step with k guesses verifies them all at once: with a share a of guesses that come true it gives (1 - a^(k+1)) / (1 - a) tokens
on average (Leviathan, Kalman and Matias, 2023). Whether that is worth the longer step is decided anew for each step, from what
steps of that length took here; what never ran is thought to be cheap, so that it is tried. Guesses that are wrong are thus soon
asked for no more, but for one now and then, ever more rarely, in case they have become better. Nor are they where whoever guesses would
have to read more first than what is still to come can pay back.

Pure: no clock, no ids. Knows nothing of who guesses.
"""

from strategy.draft_costs import TOKEN_SHARE, ChainCosts, ReadingCosts, StepCosts

# Tokens of a step with guesses. On many devices three rows cost more than four.
LENGTHS = (2, 4, 8, 12, 16)
# Going on behind guesses pays where all of them come true about so often (0.6 where it was measured).
_LEAST_CERTAIN = 0.4
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
# Whoever guesses reads so many tokens along with its guesses; more are looked at by themselves. Before that was seen, of a step of one
# token, what reading one is thought to take; of a step in which all are computed again, all of them. Of what is still to come, how much
# reading may take for the sake of a guess that is only tried.
CAUGHT_UP_TOKENS, _LONG_READING = 32, 128  # what fewer take is lost in what steps differ by anyway
_READING_SHARE, _READING_ALL_SHARE = 0.02, 0.5
_TRIED_SHARE = 0.1


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
    """Of one sequence. costs, route, reading: of its route, shared by all of its sequences that are guessed for in the same way; patience: too,
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
        reading: ReadingCosts | None = None,
    ):
        self._costs = costs
        self._reading = reading or ReadingCosts()
        self._read_s: float | None = 0.0  # since the last guesses; None where a part of it is not known
        self._chain = chain
        self._of_route, self._of_own = route, Acceptances(_FADING)
        self._grows = grows
        self._patience = patience or DraftPatience()
        self._answered: tuple[tuple[float, ...], tuple[int, float]] = (), (0, 0.0)
        self.expects(1)

    def expects(self, support: int) -> None:
        """So much speaks for the next guesses, as of `Acceptances`."""
        self._route, self._own = self._of_route.of(support), self._of_own.of(support)

    def __repr__(self) -> str:
        return f"DraftLength({self._of_own}, {self._patience})"

    def best(self, num_known: int, num_due: int, most: int, num_unread: int = 0, num_ahead: int | None = None) -> int:
        """How many tokens to guess before the next step; 0 for none.

        num_known: tokens of the sequence; num_due: of those, how many the step computes in any case; most: guesses at most;
        num_unread: of those known, how many whoever guesses has not read, beyond those that are new each time; num_ahead: how many are
        likely still to come, that step's included, all that may where that is not known.
        """
        if not self._costs.tells:
            return 0
        plain_s, num_ahead = self._seconds(num_known, num_due), most + 1 if num_ahead is None else num_ahead
        guesses, pace = self._fastest(num_known, num_due, most)
        saved_s = num_ahead * (plain_s - _WORTH / pace)
        if not guesses and self._patience.is_over(num_unread):
            guesses, saved_s = min(_counts(num_due, most), default=0), _TRIED_SHARE * num_ahead * plain_s
        if num_unread <= CAUGHT_UP_TOKENS or self._read_s != 0.0:  # the rest of what was begun is less
            return guesses
        return guesses if self._reading_s(num_known, num_unread, plain_s) <= saved_s else 0

    def _fastest(self, num_known: int, num_due: int, most: int) -> tuple[int, float]:
        """The best number of guesses, and from how many tokens a second on another is better."""
        if self._grows:
            return self._one_by_one(num_known, num_due, most)
        num_changes = self._costs.num_changes if self._chain is None else self._chain.num_changes
        asked = num_due, min(most, LENGTHS[-1]), self._rate, num_changes
        if asked != self._answered[0]:  # else it would take 20 us in front of each step
            guesses, pace = self._one_by_one(num_known, num_due, most)
            going_on, pace_on = self._going_on(num_due, most, pace)
            self._answered = asked, (going_on or guesses, pace_on or pace)
        return self._answered[1]

    def _reading_s(self, num_known: int, num_unread: int, plain_s: float) -> float:
        share = _READING_ALL_SHARE * num_unread / num_known if self._grows else _READING_SHARE * num_unread
        return self._reading.of(num_unread, share * plain_s)

    def further(self, num_known: int, most: int) -> int:
        """How many tokens to guess behind guesses that are being verified, for a step of these alone; 0 where it does not pay.

        num_known: tokens of the sequence, those guesses included; most: as in `best`.
        """
        _, pace = self._one_by_one(num_known, 1, most)
        return self._going_on(0, most, pace)[0]

    @property
    def _rate(self) -> float:
        return self._own.rate(self._route.rate(_FIRST_RATE, _FIRST_WEIGHT), _ROUTE_WEIGHT)

    def _one_by_one(self, num_known: int, num_due: int, most: int) -> tuple[int, float]:
        """The best number of guesses where each step waits for the one before, and from how many tokens a second on another is better."""
        plain_s, rate = self._seconds(num_known, num_due), self._rate
        guesses, best_pace = 0, _WORTH / plain_s
        for count in _counts(num_due, most):
            least_s = plain_s * (1 + TOKEN_SHARE * count)
            pace = _expected(rate, count) / max(self._seconds(num_known + count, num_due + count), least_s)
            if pace > best_pace:
                guesses, best_pace = count, pace * _WORTH
        return guesses, best_pace

    def _going_on(self, num_due: int, most: int, best_pace: float) -> tuple[int, float]:
        """As `_one_by_one`, where others follow while guesses are verified; 0 and 0 where that makes fewer tokens a second."""
        guesses, rate = 0, self._rate
        if self._chain is None:
            return 0, 0.0
        for count in _counts(num_due, most):
            length = num_due + count
            if rate**length < _LEAST_CERTAIN:
                break
            pace = _expected(rate, length - 1) / self._chain.of(length, rate)
            if pace > best_pace:
                guesses, best_pace = count, pace * _WORTH
        return guesses, best_pace if guesses else 0.0

    def _seconds(self, num_tokens: int, num_computed: int) -> float:
        return self._costs.of(num_computed) * (num_tokens if self._grows else 1)

    def stepped(
        self, num_known: int, num_due: int, num_guesses: int, num_right: int, seconds: float | None, num_unread: int = 0
    ) -> None:
        """A step came back, with guesses or without. seconds: None where they are not those of such a step alone; num_unread: what
        whoever guessed had to read for it, and for those that were `read_on` before.
        """
        if num_guesses:
            self._saw(num_guesses, num_right)
        else:
            self._patience.passed()
        tell, length, num_tokens = self._costs.guessed, num_due + num_guesses, num_known + num_guesses
        if not num_guesses:
            tell = self._costs.plain
        seconds = self._but_reading(seconds, num_unread, self._seconds(num_tokens, length))
        tell(length, seconds, num_tokens if self._grows else 1.0)

    def read_on(self, num_known: int, num_due: int, seconds: float | None) -> None:
        """A step came back before which whoever guesses read some of what it did not know, and did not guess yet."""
        self._patience.passed()
        self._costs.plain(num_due, None)
        if seconds is None or self._read_s is None:
            self._read_s = None
        else:
            self._read_s += seconds - self._seconds(num_known, num_due)

    def went_on(
        self,
        length: int,
        num_guesses: int,
        num_right: int,
        seconds: float | None,
        *,
        is_behind: bool,
        num_unread: int = 0,
    ) -> None:
        """A step of `length` tokens came back with which others were on their way. num_guesses: with the first of the next one;
        is_behind: it went on itself. seconds: since the last one that counted, None where that says nothing; num_unread: as in `stepped`.
        """
        assert self._chain is not None
        self._saw(num_guesses, num_right)
        seconds = self._but_reading(seconds, num_unread, self._chain.of(length, self._rate))
        (self._chain.behind if is_behind else self._chain.anew).guessed(length, seconds)

    def _but_reading(self, seconds: float | None, num_unread: int, usual_s: float) -> float | None:
        """Of a step for which much was read first what lies beyond the usual was the reading, and nothing is known of the rest."""
        if num_unread <= CAUGHT_UP_TOKENS:
            return seconds
        if num_unread >= _LONG_READING and seconds is not None and self._read_s is not None:
            self._reading.saw(num_unread, self._read_s + seconds - usual_s)
        self._read_s = 0.0
        return None

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
