"""Chunks of one size, as a `Schedule` asks for them; prompts are read together where they have room in one pass, filled up."""

from dataclasses import dataclass


@dataclass
class FixedChunks:
    """room: tokens of a pass of several prompts; 0 where each is read by itself."""

    size: int = 4
    room: int = 0

    def tokens(self, prefill_tokens, computed_tokens, *, num_decoding, num_left):
        """See `Chunks`."""
        return self.size

    def joins(self, counts, count, *, num_decoding):
        """See `Chunks`."""
        return (len(counts) + 1) * max(*counts, count) <= self.room
