"""How long requests took since the coordinator began, and what became of them: distributions and sums, for whoever draws them.

Told by the service; a token costs one search among some bounds.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0, 600.0)
_GAPS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)
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


class Measures:
    """ttft, total: seconds from arrival to the first token and to the last; gap: between two tokens; error: of the predicted total
    time, as a share of what it took. outcomes: requests by strategy ("none" where none was chosen) and how they ended: a finish
    reason, "failed" or "cancelled".
    """

    def __init__(self) -> None:
        self.ttft = Distribution(_SECONDS)
        self.total = Distribution(_SECONDS)
        self.gap = Distribution(_GAPS_S)
        self.error = Distribution(_SHARES)
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.prompt_tokens = 0
        self.generated_tokens = 0

    def __repr__(self) -> str:
        return f"Measures({dict(self.outcomes)})"

    def answered(self, ttft_s: float, total_s: float, predicted_s: float | None) -> None:
        """A request was answered to its end."""
        self.ttft.observe(ttft_s)
        self.total.observe(total_s)
        if predicted_s is not None and total_s > 0:
            self.error.observe(abs(predicted_s - total_s) / total_s)

    def grew(self, num_tokens: int, gap_s: float | None) -> None:
        """An answer has so many more tokens, with so much time between two of them; None for its first."""
        self.generated_tokens += num_tokens
        if gap_s is not None:
            self.gap.observe(gap_s, num_tokens)

    def ended(self, strategy: str | None, outcome: str, prompt_tokens: int) -> None:
        """A request ended, well or not."""
        self.outcomes[strategy or "none", outcome] += 1
        self.prompt_tokens += prompt_tokens
