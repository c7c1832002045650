"""A step as a schedule plans it, and whom the schedule asks for chunks and for guesses at what comes next. Counts of tokens only, no ids."""

from collections.abc import Sequence
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
    """One micro-batch. Rows of a slot have equal counts; prompts that are read together are filled up to the longest. slot: None for
    prefill and for uncached steps.
    """

    slot: int | None
    cached: bool
    rows: tuple[RowPlan, ...]


class Chunks(Protocol):
    """Who says how prompts are cut, as `strategy.chunking.ChunkSize` does. num_decoding: batches of other sequences that decode meanwhile."""

    def tokens(self, prefill_tokens: int, computed_tokens: int, *, num_decoding: int, num_left: int) -> int:
        """In the next chunk of a prompt of which there were so many to compute; `computed_tokens` lie before it, and `num_left`
        are to compute now.
        """

    def joins(self, counts: Sequence[int], count: int, *, num_decoding: int) -> bool:
        """Whether what is left of a prompt, `count` tokens, is read in one step with what is left of others."""


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
