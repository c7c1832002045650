"""Training for long contexts on short rows: positions that skip ahead, and earlier messages that count many times.

Two things change as a context grows, and neither needs a long row to be learned. Distances grow: rotary embeddings see
nothing else of a position, so positions that jump between messages show them all (the idea is that of PoSE, arXiv
2309.10400). And attention is spread over more keys: adding log(k) to the scores of the earlier messages is the same as
having them there k times.
"""

import math
from random import Random
from typing import NamedTuple

import mlx.core as mx
from mlx import nn
from mlx_lm.models.llama import Model

from models.training.rows import Row


class SkippingRope(nn.Module):
    """Rotary embedding at the positions given to `use`, or as the wrapped one does where none are given."""

    def __init__(self, rope: nn.Module, head_dim: int, base: float):
        super().__init__()
        self.rope = rope
        self._frequencies = base ** (-mx.arange(0, head_dim, 2) / head_dim)
        self._angles: tuple[mx.array, mx.array] | None = None

    def use(self, positions: mx.array | None) -> None:
        """Takes the positions (rows, length) of the next pass."""
        if positions is None:
            self._angles = None
        else:
            angles = positions[:, None, :, None] * self._frequencies
            self._angles = mx.cos(angles), mx.sin(angles)

    def __call__(self, x: mx.array, offset: int = 0) -> mx.array:
        """Turns x, of shape (rows, heads, length, head_dim)."""
        if self._angles is None:
            return self.rope(x, offset=offset)
        cos, sin = self._angles
        first, second = mx.split(x, 2, axis=-1)
        return mx.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def install(model: Model) -> SkippingRope:
    """Gives all layers of the model one SkippingRope, which has no weights, and returns it."""
    args = model.args
    rope = SkippingRope(model.layers[0].self_attn.rope, args.head_dim, args.rope_theta)
    for layer in model.layers:
        layer.self_attn.rope = rope
    return rope


class Placement(NamedTuple):
    """Where the inputs of a row stand, and that those before `crowd_end` count `exp(crowd_score)` times after it."""

    positions: list[int]
    crowd_end: int
    crowd_score: float


def place(row: Row, marks: frozenset[int], context_length: int, rng: Random) -> Placement:
    """A random placement of a row. `marks` are the tokens that begin a message; no position reaches `context_length`.

    Two rows of five count straight on, the others skip at up to three messages; half of those with more than one message
    are crowded.
    """
    length = len(row.tokens) - 1
    starts = [at for at in range(1, length) if row.tokens[at] in marks]
    positions = _skip(length, rng.sample(starts, min(len(starts), rng.choice((0, 0, 1, 2, 3)))), context_length, rng)
    if not starts or rng.random() < 0.5:
        return Placement(positions, 0, 0.0)
    end = rng.choice(starts)
    return Placement(positions, end, rng.random() * math.log(max(1.0, 0.9 * context_length / end)))


def _skip(length: int, cuts: list[int], context_length: int, rng: Random) -> list[int]:
    room = int((context_length - length) * rng.random())
    skips = {}
    for cut in cuts:
        skips[cut] = rng.randrange(room + 1)
        room -= skips[cut]
    return [at + sum(skip for cut, skip in skips.items() if cut <= at) for at in range(length)]


def forward(model: Model, rope: SkippingRope, inputs: mx.array, placements: list[Placement]) -> mx.array:
    """The hidden states (rows, length, hidden) of inputs (rows, length) under their placements."""
    at = mx.arange(inputs.shape[1])
    ends = mx.array([p.crowd_end for p in placements])[:, None, None]
    scores = mx.array([p.crowd_score for p in placements])[:, None, None]
    crowd = mx.where((at[:, None] >= ends) & (at[None, :] < ends), scores, 0.0)
    mask = mx.where(at[:, None] >= at[None, :], crowd, -1e9)[:, None]
    rope.use(mx.array([p.positions for p in placements]))
    hidden = model.model.embed_tokens(inputs)
    for layer in model.layers:
        hidden = layer(hidden, mask, None)
    rope.use(None)
    return model.model.norm(hidden)
