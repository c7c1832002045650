"""Several greedy steps of a small model as one compiled graph.

Where a step is small, most of what it takes is putting its graph together and handing out its operations one by one. Compiled, that is
done once for each number of steps, and less is handed out. A graph has shapes that do not change, so it computes with all the rows
that a cache has room for and hides those that are not filled; caches grow by steps, so that there are few such graphs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.cache import KVCache

# Tokens that are read in front of the first step at most.
MOST_READ = 2
_LEAST_ROOM = 256
# Of compiling.
_TRIES = 3
_UNREAD = [0] * MOST_READ


class GreedySteps:
    """Of one model, whose caches are all mlx-lm's plain ones. vocabulary_size: ids below which those lie that it says."""

    def __init__(self, model: nn.Module, vocabulary_size: int):
        self._model = model
        self._vocabulary_size = vocabulary_size
        self._graphs: dict[int, Callable[..., list[mx.array]]] = {}

    def __repr__(self) -> str:
        return f"GreedySteps({sorted(self._graphs)})"

    def take(self, tokens: Sequence[int], count: int, cache: list[KVCache]) -> tuple[mx.array, mx.array]:
        """What comes behind these next tokens, MOST_READ at most: `count` ids, and of each how likely it is as the model has it,
        (count,) and lazy. The cache, which has read something before, has all of that but the last id.
        """
        num_more = len(tokens) + count - 1
        for entry in cache:
            _make_room(entry, num_more)
        state = [rows for entry in cache for rows in (entry.keys, entry.values)]
        if count not in self._graphs:
            self._graphs[count] = mx.compile(partial(self._steps, count))
        ids, shares, *state = self._graphs[count](mx.array([tokens]), mx.array([cache[0].offset]), *state)
        for number, entry in enumerate(cache):
            entry.keys, entry.values = state[2 * number : 2 * number + 2]
            entry.offset += num_more
        return ids, shares

    def _steps(self, count: int, tokens: mx.array, offset: mx.array, *state: mx.array) -> list[mx.array]:
        cache = [_Rows(*pair, offset) for pair in zip(state[::2], state[1::2], strict=True)]
        ids: list[mx.array] = []
        shares: list[mx.array] = []
        for _ in range(count):
            logits = self._model(tokens, cache=cache)[:, -1, : self._vocabulary_size]
            ids.append(mx.argmax(logits, axis=-1))
            shares.append(share_of_likeliest(logits))
            tokens = ids[-1][:, None]
        rows = [rows for entry in cache for rows in (entry.keys, entry.values)]
        return [mx.concatenate(ids), mx.concatenate(shares), *rows]


def share_of_likeliest(logits: mx.array) -> mx.array:
    """What the greedy choice has of all probability, (1,): about how often the large model chooses the same."""
    return mx.exp(mx.max(logits, axis=-1) - mx.logsumexp(logits, axis=-1)).astype(mx.float32)


def greedy_steps(
    model: nn.Module, vocabulary_size: int, make_cache: Callable[[], list[Any]], counts: Sequence[int]
) -> GreedySteps | None:
    """The steps of a model, compiled for so many at a time; None where they cannot be, or then say something else."""
    cache, other = make_cache(), make_cache()
    if not cache or not all(type(entry) is KVCache for entry in cache):
        return None
    read = mx.zeros((1, 3), mx.int32)
    expected: list[int] = []
    mx.eval(model(read, cache=other))
    for _ in range(sum(counts)):
        logits = model(mx.array([expected[-1:] or _UNREAD]), cache=other)[0, -1:, :vocabulary_size]
        expected += _listed(mx.argmax(logits, axis=-1))
    for _ in range(_TRIES):
        steps = GreedySteps(model, vocabulary_size)
        found: list[int] = []
        try:
            mx.eval(model(read, cache=cache))
            for count in counts:
                found += _listed(steps.take(found[-1:] or _UNREAD, count, cache)[0])
        except (TypeError, ValueError):  # it asks how many tokens a cache has, or hides some of them
            return None
        except RuntimeError:  # no compiler; or somebody else compiles the same, and it is not all there yet
            cache = make_cache()
            continue
        return steps if found == expected else None
    return None


def _listed(ids: mx.array) -> list[int]:
    found: list[int] = np.array(ids).tolist()
    return found


class _Rows:
    """A plain cache inside a graph, see the module. offset: how many of its rows are filled, (1,)."""

    def __init__(self, keys: mx.array, values: mx.array, offset: mx.array):
        self.keys = keys
        self.values = values
        self.offset = offset

    def __repr__(self) -> str:
        return f"_Rows({self.keys.shape[2]})"

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """As mlx-lm's caches do it, with all rows."""
        self.keys = mx.slice_update(self.keys, keys, self.offset, axes=[2])
        self.values = mx.slice_update(self.values, values, self.offset, axes=[2])
        self.offset = self.offset + keys.shape[2]
        return self.keys, self.values

    def make_mask(self, num_tokens: int, *, window_size: int | None = None, **_: Any) -> mx.array:
        """Which rows each of the next tokens sees. Raises ValueError where it would not see all before it."""
        if window_size is not None:
            raise ValueError("a window hides rows of its own")
        places = self.offset + mx.arange(num_tokens)
        return mx.arange(self.keys.shape[2]) <= places[:, None]


def _make_room(entry: KVCache, num_more: int) -> None:
    """As many rows as one of the graphs has: up to a quarter more than are wanted."""
    wanted = entry.offset + num_more
    step = max(_LEAST_ROOM, 1 << max(wanted.bit_length() - 2, 0))
    room = -(-wanted // step) * step
    missing = room - entry.keys.shape[2]
    if missing > 0 or entry.keys.shape[2] % step:
        entry.keys, entry.values = _padded(entry.keys, room), _padded(entry.values, room)


def _padded(rows: mx.array, room: int) -> mx.array:
    batch, heads, there, width = rows.shape
    if there >= room:
        return rows[:, :, :room]
    return mx.concatenate([rows, mx.zeros((batch, heads, room - there, width), rows.dtype)], axis=2)
