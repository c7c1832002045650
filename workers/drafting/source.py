"""Who guesses the next tokens of one sequence."""

from collections.abc import Sequence
from typing import Protocol


class GuessSource(Protocol):
    """For one sequence, whose tokens so far, prompt and answer, come along each time. On the thread that owns MLX."""

    def expects(self, tokens: Sequence[int]) -> int:
        """How much speaks for a guess at what comes behind them, 0 where there is none: with twice as much, how often it comes true is
        another question. Costs next to nothing.
        """

    def guess(self, tokens: Sequence[int], count: int, ahead: Sequence[int] = ()) -> list[int]:
        """What comes next, `count` ids at most; none where there is no guess, or none yet. ahead: what was guessed behind the tokens
        before, and is not known to be right; what comes behind that is wanted.
        """
