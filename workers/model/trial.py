"""Runs one small random model in every way in which stages may run it, and says which of them give what mlx-lm gives.

Owns the comparisons: cuts bit for bit with the whole model; passes without caches, chunks and batches with mlx-lm's own
run of a prompt, within what float32 rounds. Knows no configurations and keeps nothing. A way that fails, in whatever
manner the model's code happens to, is a way that cannot be taken.
"""

import io
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from protocol.values import LayerRange
from workers.cache.stage_cache import StageCache, can_batch
from workers.model.payload import Carried, Part, Payload
from workers.model.split_model import SplitModel

T = TypeVar("T")
Passes = tuple[tuple[int, ...], ...]

# Longer than the sliding windows, blocks and choices of a shrunk model several times over.
_IDS = tuple((7 * place + place * place // 9) % 251 + 3 for place in range(47))
# As mlx-lm runs a prompt: all but its last token in one pass, then token by token.
_OWN: Passes = (_IDS[:38], _IDS[38:39], _IDS[39:40])
_IN_CHUNKS: Passes = (_IDS[:15], _IDS[15:16], _IDS[16:38], *_OWN[1:])
_CACHED: Passes = (*_OWN, _IDS[40:])
_AT_ONCE: Passes = (_IDS[:40],)
_BRIEFLY: Passes = (_IDS[:4], _IDS[4:5])
_BEGUN = 3
_RAGGED: Passes = (_IDS[:17], _IDS[5:9], _IDS[9:20])
# Of the largest logit: what another order of additions may change.
_ROUNDING = 1e-4
# Logits beyond it say nothing of the size of the others.
_MASKED = 1e6


class Trial:
    """One model, run whole and in stages. Raises from the start when it does not even run whole.

    last_error: what the newest refused cut raised, if it raised anything.
    """

    def __init__(self, model: nn.Module):
        self._can_batch = can_batch(make_prompt_cache(model))
        self._split = SplitModel(model)
        self._handed_on: dict[int, Payload] = {}
        self._whole: dict[tuple[Passes, bool], list[mx.array]] = {}
        self._own = self._of_whole(_CACHED, cached=True)[: len(_OWN)]
        self.last_error: Exception | None = None

    @property
    def num_layers(self) -> int:
        return self._split.num_layers

    def legal_cuts(self) -> tuple[int, ...]:
        """All of them at once when that is exact. Otherwise the longest run of cuts from the start that is (a part of a
        legal selection is legal, so bisection finds it) and whatever else is legal on its own and together.
        """
        every = tuple(range(1, self.num_layers))
        if not every or self._exact(every):
            return every
        first_illegal = bisect_left(every, True, key=lambda cut: not self._exact_briefly(every[:cut]))
        together = every[:first_illegal]
        for cut in every[first_illegal + 1 :]:
            if self._fits((cut,)) and self._exact_briefly((*together, cut)):
                together = (*together, cut)
        return together if together and self._exact(together) else ()

    def unused(self, cuts: tuple[int, ...]) -> dict[int, tuple[Part, ...]]:
        """Parts that no layer after a cut reads, by the graph of what is computed there; most architectures hand on one
        array. What it reads without any effect on a short sequence counts as read.
        """
        extra = {cut: list(_parts(self._handed_on[cut]))[1:] for cut in cuts}
        if not any(extra.values()):
            return {}
        read = self._read(cuts)
        unread = {cut: tuple(part for part in parts if (cut, *part) not in read) for cut, parts in extra.items()}
        self._split.unused = {cut: parts for cut, parts in unread.items() if parts}
        if not self._exact(cuts):
            self._split.unused = {}
        return self._split.unused

    def uncached_is_wrong(self) -> bool:
        """Whether a pass without caches gives something else than mlx-lm's own run of the same ids, which has them."""
        return not self._equals_own(_AT_ONCE, cached=False)

    def chunks_are_wrong(self) -> bool:
        """Whether the logits depend on how a prompt is cut into passes, so that only mlx-lm's own way gives its own."""
        return not (self._equals_own(_IN_CHUNKS, cached=True) and self._equals_own(_AT_ONCE, cached=True))

    def batches(self, cuts: Sequence[int]) -> bool:
        """Whether sequences of different lengths give the same in a batch, cut in the middle where that is legal: some
        attention code takes no such mask.
        """
        return self._is_same_merged(cuts, self._batch_equals_its_sequences)

    def reads_together(self, cuts: Sequence[int]) -> bool:
        """As `batches`, where prompts of different lengths are read in one pass, filled up behind their ends."""
        return self._is_same_merged(cuts, self._read_together_equals_alone)

    def last_position_only(self) -> bool:
        """Whether the projection can be limited to the last position; not where passes cannot be redirected at all."""
        whole = LayerRange(0, self.num_layers)

        def same() -> bool:
            tokens, cache = mx.array(_BRIEFLY[:1], mx.int32), self._split.make_cache(whole)
            last = self._split.forward(tokens, layers=whole, cache=cache, last_positions=1)
            return _near(last, self._of_whole(_BRIEFLY, cached=True)[0][:, -1:])

        return bool(_attempt(same)[0])

    def shows_hidden_states(self) -> bool:
        """Whether what the projection is given can be had, of each position and of the last one alone."""
        whole, tokens = LayerRange(0, self.num_layers), mx.array(_BRIEFLY[:1], mx.int32)

        def same() -> bool:
            every = self._split.hidden_states(tokens, layers=whole, cache=self._split.make_cache(whole))
            if not self.last_position_only():
                return every.shape[1] == tokens.shape[1]
            cache = self._split.make_cache(whole)
            last = self._split.hidden_states(tokens, layers=whole, cache=cache, last_positions=1)
            return _near(last, every[:, -1:])

        return bool(_attempt(same)[0])

    def _exact(self, cuts: Sequence[int]) -> bool:
        if not self._same(cuts, _CACHED, cached=True):
            return False
        runs_uncached = _attempt(lambda: self._of_whole(_AT_ONCE, cached=False))[0] is not None
        return not runs_uncached or self._same(cuts, _AT_ONCE, cached=False)

    def _exact_briefly(self, cuts: Sequence[int]) -> bool:
        return self._fits(cuts) and self._same(cuts, _BRIEFLY, cached=True)

    def _fits(self, cuts: Sequence[int]) -> bool:
        """Whether the shapes fit; most illegal cuts fail here, at no cost."""
        found, error = _attempt(lambda: self._logits(cuts, _BRIEFLY[:1], cached=True, evaluate=False))
        self.last_error = error or self.last_error
        return found is not None

    def _same(self, cuts: Sequence[int], passes: Passes, *, cached: bool) -> bool:
        expected = self._of_whole(passes, cached=cached)
        found, error = _attempt(lambda: self._logits(cuts, passes, cached=cached))
        self.last_error = error
        return found is not None and all(_equal(a, b) for a, b in zip(expected, found, strict=True))

    def _read(self, cuts: tuple[int, ...]) -> set[Part]:
        """What is read of the payloads at cuts that are in force together; each part's path begins with the cut."""
        stages = _stages(cuts, self.num_layers)
        read: set[Part] = set()
        for passes, cached in ((_CACHED, True), (_AT_ONCE, False)):
            caches = [self._split.make_cache(layers) if cached else None for layers in stages]
            for ids in passes:
                logits = self._through(stages, [ids], caches, evaluate=False)
                states = [cache.states() for cache in caches if cache is not None]
                handed_on: dict[Part, mx.array] = {}
                for cut in cuts:
                    handed_on |= _parts(self._handed_on[cut], (cut,))
                read |= _read_by([logits, states], handed_on)
                mx.eval(logits, states)
        return read

    def _equals_own(self, passes: Passes, *, cached: bool) -> bool:
        """Whether the last logits of these passes are those of mlx-lm's own run, after the prompt and one token later."""
        found, _ = _attempt(lambda: mx.concatenate(self._of_whole(passes, cached=cached), axis=1))
        return found is not None and _near(found[:, -2:], mx.concatenate(self._own[1:], axis=1))

    def _of_whole(self, passes: Passes, *, cached: bool) -> list[mx.array]:
        if (passes, cached) not in self._whole:
            self._whole[passes, cached] = self._logits((), passes, cached=cached)
        return self._whole[passes, cached]

    def _logits(self, cuts: Sequence[int], passes: Passes, *, cached: bool, evaluate: bool = True) -> list[mx.array]:
        stages = _stages(cuts, self.num_layers)
        caches = [self._split.make_cache(layers) if cached else None for layers in stages]
        return [self._through(stages, [ids], caches, evaluate=evaluate) for ids in passes]

    def _through(
        self,
        stages: Sequence[LayerRange],
        ids: Sequence[tuple[int, ...]],
        caches: Sequence[StageCache | None],
        *,
        evaluate: bool = True,
    ) -> mx.array:
        payload: Payload = None
        tokens = mx.array(list(ids), mx.int32)
        for layers, cache in zip(stages, caches, strict=True):
            payload = self._split.forward(tokens, layers=layers, cache=cache, payload=payload)
            self._handed_on[layers[1]] = payload
            if evaluate:
                self._split.evaluate(payload, cache)
        logits: mx.array = payload
        return logits

    def _is_same_merged(self, cuts: Sequence[int], compare: Callable[[Sequence[LayerRange]], bool]) -> bool:
        stages = _stages(cuts[len(cuts) // 2 :][:1], self.num_layers)
        return self._can_batch and bool(_attempt(lambda: compare(stages))[0])

    def _batch_equals_its_sequences(self, stages: Sequence[LayerRange]) -> bool:
        """Of three sequences one comes later, then one leaves and goes on alone."""
        alone = self._ragged(stages, _RAGGED)
        batch = [StageCache.merge(list(caches)) for caches in zip(*alone[:2], strict=True)]
        if not self._steps_alike(stages, batch, alone[:2], 9):
            return False
        for cache, newcomer in zip(batch, alone[2], strict=True):
            cache.extend(StageCache.merge([newcomer]))
        if not self._steps_alike(stages, batch, alone, 13):
            return False
        left = [cache.extract(1) for cache in batch]
        for cache in batch:
            cache.filter([2, 0])
        return self._steps_alike(stages, batch, [alone[2], alone[0]], 31) and self._steps_alike(
            stages, left, [alone[1]], 8
        )

    def _read_together_equals_alone(self, stages: Sequence[LayerRange]) -> bool:
        """Of three sequences one has begun before, and one leaves then and goes on alone."""
        alone = self._ragged(stages, _RAGGED)
        begun, rests = _RAGGED[0][:_BEGUN], (_RAGGED[0][_BEGUN:], *_RAGGED[1:])
        batch = [StageCache.merge(list(caches)) for caches in zip(*self._ragged(stages, (begun, (), ())), strict=True)]
        longest = max(map(len, rests))
        for cache in batch:
            cache.prepare(lengths=[*map(len, rests)], right_padding=[longest - len(rest) for rest in rests])
        self._through(stages, [(*rest, *_IDS)[:longest] for rest in rests], batch)
        for cache in batch:
            cache.finalize()
        if not self._steps_alike(stages, batch, alone, 9):
            return False
        return self._steps_alike(stages, [cache.extract(1) for cache in batch], [alone[1]], 13)

    def _ragged(self, stages: Sequence[LayerRange], passes: Passes) -> list[list[StageCache]]:
        """Caches of sequences that have so much."""
        every = [[self._split.make_cache(layers) for layers in stages] for _ in passes]
        for ids, caches in zip(passes, every, strict=True):
            if ids:
                self._through(stages, [ids], caches)
        return every

    def _steps_alike(
        self,
        stages: Sequence[LayerRange],
        batch: Sequence[StageCache],
        alone: Sequence[Sequence[StageCache]],
        token: int,
    ) -> bool:
        """Whether one more token gives the same in a batch as for each of its sequences alone."""
        expected = mx.concatenate([self._through(stages, [(token,)], caches) for caches in alone])
        return _near(self._through(stages, [(token,)] * len(alone), batch), expected)


def _attempt(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What the action returns, or what it raised: an illegal read fails in whatever way the model's code happens to."""
    try:
        return action(), None
    except Exception as error:  # noqa: BLE001  the boundary between us and any model's code
        return None, error


def _stages(cuts: Sequence[int], num_layers: int) -> list[LayerRange]:
    return [LayerRange(*bounds) for bounds in zip((0, *cuts), (*cuts, num_layers), strict=True)]


def _equal(a: mx.array, b: mx.array) -> bool:
    return a.shape == b.shape and bool(mx.array_equal(a, b, equal_nan=True).item())


def _near(a: mx.array, b: mx.array) -> bool:
    """Equal but for rounding; what is not a number says nothing and is not."""
    size: Any = mx.max(mx.where(mx.abs(b) < _MASKED, mx.abs(b), 0.0)).item()
    return a.shape == b.shape and bool(mx.allclose(a, b, 0.0, _ROUNDING * size).item())


def _parts(payload: Payload, path: Part = ()) -> dict[Part, mx.array]:
    """The arrays of a payload by where they stand in it, but for those within objects."""
    if isinstance(payload, mx.array):
        return {path: payload}
    found: dict[Part, mx.array] = {}
    items: Iterable[tuple[str | int, Payload]] = ()
    if isinstance(payload, dict):
        items = payload.items()
    elif isinstance(payload, tuple | list | Carried):
        items = enumerate(payload)
    for key, item in items:
        found |= _parts(item, (*path, key))
    return found


def _read_by(outputs: Payload, parts: dict[Part, mx.array]) -> set[Part]:
    """Which of these arrays the unevaluated outputs are computed from, by MLX's own graph."""
    wanted = [array for _, array in tree_flatten(outputs) if isinstance(array, mx.array)]
    names = {f"output{number}": array for number, array in enumerate(wanted)}
    names |= {f"part{number}": array for number, array in enumerate(parts.values())}
    graph = io.StringIO()
    mx.export_to_dot(graph, *wanted, **names)
    sources: dict[str, list[str]] = {}
    for source, target in re.findall(r"^(\S+) -> (\S+)$", graph.getvalue(), re.MULTILINE):
        sources.setdefault(target.strip('"'), []).append(source.strip('"'))
    found, queue = set[str](), [f"output{number}" for number in range(len(wanted))]
    while queue:
        for source in sources.pop(queue.pop(), []):
            found.add(source)
            queue.append(source)
    return {part for number, part in enumerate(parts) if f"part{number}" in found}
