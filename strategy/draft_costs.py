"""What steps with guesses cost a route, and reading whoever guesses, as seen: the middle one of the last few counts.

Of what never ran it is thought to be cheap, so that it is tried. Pure: no clock.
"""

from collections import deque
from statistics import fmean, median_low

# Of a step, what each token more is thought to add before that was measured, and at least: the least that was seen. Of two steps that
# were measured the longer one may have been the faster; that many guesses cost nothing does not follow.
TOKEN_SHARE = 0.04
# Beyond the longest that was measured, of what the tokens before added, how much the next ones are thought to.
_HOPE = 0.7
# Of a step by itself, how long after the one before it one is thought to come back that goes on behind that.
_HOPED_SHARE = 0.6
# Of a route, without guesses: the first one is no measure, and of the others so many in a row are.
_IN_A_ROW = 4
_PLAIN_STEPS = 1 + _IN_A_ROW
# Of the last so many steps of one length the middle one counts; the first one is no measure.
_REMEMBERED = 5


class StepCosts:
    """What steps of each length took, in seconds for a unit of work that the caller counts in. num_changes: how often what is thought of
    them became another.
    """

    def __init__(self) -> None:
        self._seen: dict[int, deque[float]] = {}
        self._num_plain = 0
        self._in_a_row: list[float] = []
        self._found: dict[int, float] = {}  # since what was seen last
        self.num_changes = 0

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
            self.num_changes += 1

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
            return 1.0 + TOKEN_SHARE * (length - 1)
        below, above = [n for n in known if n < length], [n for n in known if n > length]
        if not below:
            nearest = min(above)
            return known[nearest] * (1 + TOKEN_SHARE * (length - 1)) / (1 + TOKEN_SHARE * (nearest - 1))
        start = max(below)
        if above:
            end = min(above)
            return known[start] + (known[end] - known[start]) * (length - start) / (end - start)
        if start == 1:
            return known[1] * (1 + TOKEN_SHARE * (length - 1))
        first = known.get(1, known[start] / (1 + TOKEN_SHARE * (start - 1)))
        return known[start] + _HOPE * max(known[start] - first, 0.0) * (length - start) / (start - 1)


class ChainCosts:
    """What steps took of which others were on their way, too: from one that counted to the next. alone: what they take one by one."""

    def __init__(self, alone: StepCosts):
        self._alone = alone
        self.behind = StepCosts()  # another step with guesses, which was verified meanwhile
        self.anew = StepCosts()  # where what was on its way is stale, or nothing was

    def __repr__(self) -> str:
        return f"ChainCosts(behind {self.behind}, anew {self.anew})"

    @property
    def num_changes(self) -> int:
        """As of StepCosts."""
        return self._alone.num_changes + self.behind.num_changes + self.anew.num_changes

    def of(self, length: int, rate: float) -> float:
        """On average, with such a share of guesses that come true: only behind a step all of which did another one counts."""
        behind = _HOPED_SHARE * self._alone.of(length) if self.behind.is_empty else self.behind.of(length)
        anew = self._alone.of(length) + behind / 2 if self.anew.is_empty else self.anew.of(length)
        certain = rate**length
        return certain * behind + (1 - certain) * anew


class ReadingCosts:
    """What whoever guesses takes to read what it does not know, in seconds for a token: of the last few times the middle one, by tokens."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=_REMEMBERED)

    def __repr__(self) -> str:
        return f"ReadingCosts({list(self._seen)})"

    def saw(self, num_tokens: int, seconds: float) -> None:
        """So many took so long."""
        self._seen.append((max(seconds, 0.0) / num_tokens, num_tokens))

    def of(self, num_tokens: int, otherwise_s: float) -> float:
        """Of so many; otherwise_s: where none were seen."""
        left = sum(tokens for _, tokens in self._seen) / 2
        for token_s, tokens in sorted(self._seen):
            left -= tokens
            if left <= 0:
                return token_s * num_tokens
        return otherwise_s
