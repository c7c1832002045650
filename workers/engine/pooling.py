"""From the hidden states of a text, as its chunks come, to one vector."""

import mlx.core as mx

from protocol.values import Pooling


class Pool:
    """The vector of one sequence of `num_tokens`, in float32 whatever the model computes in."""

    def __init__(self, kind: Pooling, num_tokens: int):
        self._kind = kind
        self._num_tokens = num_tokens
        self._num_seen = 0
        self._pooled: mx.array | None = None

    def __repr__(self) -> str:
        return f"Pool({self._kind}, {self._num_seen} of {self._num_tokens})"

    @property
    def last_position_only(self) -> bool:
        """Whether the last hidden state of each pass is all that counts."""
        return self._kind == "last"

    @property
    def pooled(self) -> mx.array:
        """The vector as far as it goes, unevaluated; not before the first pass."""
        assert self._pooled is not None
        return self._pooled

    @property
    def is_whole(self) -> bool:
        return self._num_seen == self._num_tokens

    def add(self, hidden: mx.array, num_tokens: int) -> None:
        """The hidden states (1, n, size) of the next so many tokens; n may be 1 where only the last counts."""
        states = hidden[0].astype(mx.float32)
        self._num_seen += num_tokens
        if self._kind == "last" or (self._kind == "cls" and self._pooled is None):
            self._pooled = states[-1 if self._kind == "last" else 0]
        elif self._kind == "mean":
            part = states.sum(axis=0) / self._num_tokens
            self._pooled = part if self._pooled is None else self._pooled + part
