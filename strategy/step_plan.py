"""A step as a schedule plans it, and whom the schedule asks for guesses at what comes next. Counts of tokens only, no ids."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class RowPlan:
    """Tokens [start, start + count) of a sequence, from the last `num_sampled` of which is sampled.

    With a slot that runs ahead, the one token is what the step before samples and is not known yet.
    """

    sequence: int
    start: int
    count: int
    num_sampled: int


@dataclass(frozen=True)
class StepPlan:
    """One micro-batch. Rows have equal counts. slot: None for prefill and for uncached steps."""

    slot: int | None
    cached: bool
    rows: tuple[RowPlan, ...]


class Guesses(Protocol):
    """Who guesses what comes behind the known tokens of a sequence. num_due: of those, how many the next step computes in any case.

    forgets: whether caches can forget any of their last tokens; others go back to where a step began.
    """

    forgets: bool

    def is_due(self, sequence: int, num_due: int) -> bool:
        """Whether to guess before its next step. Changes nothing."""

    def guess(self, sequence: int, num_due: int) -> int:
        """Guess now, where it is due; returns how many tokens."""

    def go_on(self, sequence: int) -> int:
        """Guess what comes behind the guesses that are on their way, where that pays; returns how many tokens."""
