"""A small model of the same vocabulary that guesses what a large one says; whole on the worker that asks it.

It samples as the large one does: with the same parameters, and at each place with the same key, so that where both think
alike they choose alike, at any temperature. Belongs to the MLX thread.
"""

import copy
import time
from collections.abc import Sequence
from itertools import takewhile
from typing import Any
from weakref import WeakSet

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache

from protocol.values import Sampling
from strategy.drafting import LENGTHS
from workers.cache.kv_memory import kv_needs
from workers.cache.stage_cache import StageCache
from workers.drafting.greedy_steps import MOST_READ, GreedySteps, greedy_steps, share_of_likeliest
from workers.engine.sampling import PENALTY_CONTEXT_TOKENS, TokenSampler
from workers.kv_cache.rows import can_forget

_CHUNK_TOKENS = 512
# Greedy guesses go on, so many at a time, while all of them are right with this probability, as the draft has it.
_PIECE_TOKENS = 4
_LEAST_CHANCE = 0.5
_PIECES = tuple({count % _PIECE_TOKENS or _PIECE_TOKENS for length in LENGTHS for count in (length - 1, length)})


# How often a piece is timed, the first time apart, behind so many tokens.
_TIMED = 7
_CAUGHT_UP = 8
_CLEARLY = 1.2


class DraftModel:
    """vocabulary_size: of the large model, below which every guess lies; needs: what the caches of a sequence take. begins_early: whether a guess is begun before the next one is
    asked for; on a CPU, which does one thing at a time, all of them together take two thirds of that. steps: greedy ones as a graph,
    None where they cannot be compiled or are slower for it.
    """

    def __init__(self, model: nn.Module, vocabulary_size: int):
        self.begins_early = mx.metal.is_available()
        self._model = model
        self._vocabulary_size = vocabulary_size
        self._sources: WeakSet[DraftSource] = WeakSet()
        mx.eval(model.parameters())
        cache = self.make_cache()
        logits = model(mx.zeros((1, 1), mx.int32), cache=cache)
        mx.eval(logits)
        self._num_known_ids = logits.shape[-1]
        self.needs = kv_needs(StageCache(cache, tuple(range(len(cache)))))
        self.steps: GreedySteps | None = None
        self._compile()

    def __repr__(self) -> str:
        return f"DraftModel({self._num_known_ids} ids)"

    def _compile(self) -> None:
        """Where steps can be compiled and are not clearly slower for it, as those of a large model may be."""
        steps = greedy_steps(self._model, self._vocabulary_size, self.make_cache, _PIECES)
        if steps is not None:
            one_by_one_s = self._piece_s()
            self.steps = steps
            if self._piece_s() > _CLEARLY * one_by_one_s:
                self.steps = None

    def _piece_s(self) -> float:
        """What some greedy guesses take, at the least."""
        source, tokens, found = DraftSource(self, Sampling(), 0), [0] * _CAUGHT_UP, []
        for _ in range(_TIMED):
            began = time.perf_counter()
            source.guess(tokens, _PIECE_TOKENS)
            found.append(time.perf_counter() - began)
        return min(found[1:])

    def source(self, sampling: Sampling, seed: int) -> "DraftSource":
        """For one sequence."""
        source = DraftSource(self, sampling, seed)
        self._sources.add(source)
        return source

    @property
    def kv_bytes(self) -> int:
        """Of the caches of all sequences that there are."""
        return sum(source.kv_bytes for source in self._sources)

    def knows(self, tokens: Sequence[int]) -> bool:
        """Whether it has an embedding for each of them."""
        return max(tokens, default=0) < self._num_known_ids

    def make_cache(self) -> list[Any]:
        return make_prompt_cache(self._model)

    def logits(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        """Behind the last of tokens (1, n): (1, V), lazy."""
        return self._model(tokens, cache=cache)[:, -1, : self._vocabulary_size]


class DraftSource:
    """A `GuessSource`. Its cache has the sequence's tokens and, where they can be taken back, the last guesses behind them; where they
    cannot, nothing is guessed behind guesses.
    """

    def __init__(self, model: DraftModel, sampling: Sampling, seed: int):
        self._model = model
        self._sampler = TokenSampler(sampling, seed, ())
        self._cache = model.make_cache()
        self._read_ids: list[int] = []  # in the cache, guesses included
        self._num_known = 0  # of those at most, the ones that are sure

    def __repr__(self) -> str:
        return f"DraftSource({len(self._read_ids)} tokens)"

    @property
    def kv_bytes(self) -> int:
        """Of its caches."""
        return sum(entry.nbytes for entry in self._cache)

    def expects(self, tokens: Sequence[int]) -> int:
        return int(self._model.knows(tokens[-1:]))

    def guess(self, tokens: Sequence[int], count: int, ahead: Sequence[int] = ()) -> list[int]:
        goes_back = all(map(can_forget, self._cache))
        if (ahead and not goes_back) or not self._model.knows(tokens[len(self._read_ids) :]):  # what was read is known
            return []
        text = [*tokens, *ahead]
        self._forget_wrong(text)
        self._num_known = len(tokens)
        unread = text[len(self._read_ids) :]
        if len(unread) > _CHUNK_TOKENS:  # nobody shall wait for all of a long prompt
            self._read(unread[:_CHUNK_TOKENS])
            mx.eval([entry.state for entry in self._cache])
            return []
        is_compiled = count > 1 and self._model.steps is not None  # for a try, a graph is no gain
        if is_compiled and goes_back and self._sampler.is_plain_greedy and self._read_ids:
            guesses = self._go_on_greedily(unread, count)
        else:
            logits = self._read(unread)
            cache = self._cache if goes_back or count == 1 else copy.deepcopy(self._cache)
            guesses = self._go_on(text, logits, cache, count)
        if goes_back:
            self._read_ids += guesses[:-1]
        return guesses

    def _forget_wrong(self, text: Sequence[int]) -> None:
        """Of what is in the cache, what is not in the text; some token of that is left to be read."""
        num_right = min(self._num_known, len(self._read_ids), len(text) - 1)
        pairs = zip(self._read_ids[num_right:], text[num_right:-1], strict=False)
        num_right += sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if num_wrong := len(self._read_ids) - num_right:
            for entry in self._cache:
                entry.trim(num_wrong)
            del self._read_ids[num_right:]

    def _read(self, tokens: Sequence[int]) -> mx.array:
        """What it says behind these next tokens."""
        self._read_ids += tokens
        return self._model.logits(mx.array([tokens]), self._cache)

    def _go_on_greedily(self, unread: list[int], count: int) -> list[int]:
        """As `_go_on` by compiled steps, behind what is still to be read."""
        assert self._model.steps is not None
        if len(unread) > MOST_READ:
            self._read(unread[:-1])
            unread = unread[-1:]
        self._read_ids += unread
        ids: list[int] = []
        last, chance = unread, 1.0
        while len(ids) < count and chance >= _LEAST_CHANCE:
            found, shares = self._model.steps.take(last, self._piece(count - len(ids)), self._cache)
            mx.eval(found, shares)
            ids += np.array(found).tolist()
            last, chance = ids[-1:], chance * float(np.prod(np.array(shares)))
        return ids

    def _go_on(self, tokens: Sequence[int], logits: mx.array, cache: list[Any], count: int) -> list[int]:
        """Piece by piece, until it is likely that one of them is wrong."""
        ids: list[int] = []
        chance = mx.ones((1,))
        while len(ids) < count and np.array(chance) >= _LEAST_CHANCE:
            found: list[mx.array] = []
            for place in range(len(ids), len(ids) + self._piece(count - len(ids))):
                if place:
                    last = found[-1][:, None] if found else mx.array([ids[-1:]])
                    logits = self._model.logits(last, cache)
                ahead = (*tokens[-PENALTY_CONTEXT_TOKENS:], *ids) if self._sampler.looks_at_ids else ()
                found.append(self._sampler.sample(logits, len(tokens) + place, ahead=ahead))
                if self._sampler.is_plain_greedy:
                    chance = chance * share_of_likeliest(logits)
                if self._model.begins_early:
                    mx.async_eval(found[-1], chance)
            piece = mx.concatenate(found)
            mx.eval(piece, chance)
            ids += np.array(piece).tolist()
        return ids

    def _piece(self, num_left: int) -> int:
        """How many are guessed before anybody looks; with them all there are as many as a step runs well with."""
        return 1 if self._sampler.looks_at_ids else num_left % _PIECE_TOKENS or _PIECE_TOKENS
