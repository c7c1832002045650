"""How long requests took since the coordinator began, and what became of them: distributions and sums, for whoever draws them.

Told by the service; a token costs one search among some bounds.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import get_args

from cluster.planning.plan import LossCause

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0, 600.0)
_GAPS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
_TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
_SHARES = (0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0)


class Distribution:
    """How many values lie in each of the ranges that `bounds` end, each included, and above the last of them."""

    def __init__(self, bounds: Sequence[float]):
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def __repr__(self) -> str:
        return f"Distribution({sum(self.counts)} values)"

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class StrategyMeasures:
    """Of the requests of one strategy. queue: seconds from arrival in the queue until it ran first; ttft, total: from arrival to the
    first token and to the last; gap: between two tokens; error: of the predicted total time, as a share of what it took;
    prompt, generated: tokens of what was answered to its end. num_proposed: tokens that were guessed; num_accepted: that came true.
    """

    def __init__(self) -> None:
        self.queue = Distribution(_SECONDS)
        self.ttft = Distribution(_SECONDS)
        self.gap = Distribution(_GAPS_S)
        self.total = Distribution(_SECONDS)
        self.error = Distribution(_SHARES)
        self.prompt = Distribution(_TOKENS)
        self.generated = Distribution(_TOKENS)
        self.num_generated = 0
        self.num_proposed = 0
        self.num_accepted = 0

    def __repr__(self) -> str:
        return f"StrategyMeasures({self.num_generated} tokens)"

    def grew(self, num_tokens: int, gap_s: float | None) -> None:
        """An answer has so many more tokens, with so much time between two of them; None for its first."""
        self.num_generated += num_tokens
        if gap_s is not None:
            self.gap.observe(gap_s, num_tokens)

    def guessed(self, num_proposed: int, num_accepted: int) -> None:
        """So many next tokens of an answer were guessed, of which so many came true."""
        self.num_proposed += num_proposed
        self.num_accepted += num_accepted

    def answered(self, ttft_s: float, total_s: float, predicted_s: float | None) -> None:
        """A request was answered to its end."""
        self.ttft.observe(ttft_s)
        self.total.observe(total_s)
        if predicted_s is not None and total_s > 0:
            self.error.observe(abs(predicted_s - total_s) / total_s)

    def sized(self, prompt_tokens: int, generated_tokens: int) -> None:
        """So long was what was answered to its end."""
        self.prompt.observe(prompt_tokens)
        self.generated.observe(generated_tokens)


class Measures:
    """of: by strategy. outcomes: requests by strategy ("none" where none was chosen) and how they ended: a finish reason, "failed" or
    "cancelled"; recoveries: how often a request went on after a loss, by what was lost; prompt_tokens: of all that ended.
    """

    def __init__(self) -> None:
        self.of: defaultdict[str, StrategyMeasures] = defaultdict(StrategyMeasures)
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.recoveries: dict[LossCause, int] = dict.fromkeys(get_args(LossCause), 0)
        self.prompt_tokens = 0

    def __repr__(self) -> str:
        return f"Measures({dict(self.outcomes)})"

    @property
    def generated_tokens(self) -> int:
        return sum(each.num_generated for each in self.of.values())

    @property
    def proposed_tokens(self) -> int:
        """Guesses at next tokens."""
        return sum(each.num_proposed for each in self.of.values())

    @property
    def accepted_tokens(self) -> int:
        """Guesses that came true."""
        return sum(each.num_accepted for each in self.of.values())

    @property
    def ttft(self) -> Distribution:
        """Of all strategies together."""
        return _together(_SECONDS, [each.ttft for each in self.of.values()])

    @property
    def gap(self) -> Distribution:
        """Of all strategies together."""
        return _together(_GAPS_S, [each.gap for each in self.of.values()])

    def recovered(self, cause: LossCause) -> None:
        """A request goes on after a loss."""
        self.recoveries[cause] += 1

    def ended(self, strategy: str | None, outcome: str, prompt_tokens: int) -> None:
        """A request ended, well or not."""
        self.outcomes[strategy or "none", outcome] += 1
        self.prompt_tokens += prompt_tokens


def _together(bounds: Sequence[float], found: Sequence[Distribution]) -> Distribution:
    whole = Distribution(bounds)
    whole.counts = [sum(counts) for counts in zip(whole.counts, *(each.counts for each in found), strict=True)]
    whole.total = sum(each.total for each in found)
    return whole
