"""Runs one small random model in every way in which stages may run it, and says which of them give what mlx-lm gives.

Owns the comparisons: cuts bit for bit with the whole model; passes without caches, chunks and batches with mlx-lm's own
run of a prompt, within what float32 rounds. Knows no configurations and keeps nothing. A way that fails, in whatever
manner the model's code happens to, is a way that cannot be taken.
"""

import io
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from protocol.values import LayerRange
from workers.cache.stage_cache import StageCache, can_batch
from workers.model.payload import Carried, Payload
from workers.model.split_model import Part, SplitModel

T = TypeVar("T")
Passes = tuple[tuple[int, ...], ...]

# Longer than the sliding windows, blocks and choices of a shrunk model several times over, and never twice the same.
_IDS = tuple((7 * place + place * place // 9) % 251 + 3 for place in range(79))
_PROMPT_TOKENS = 77
_AFTER = len(_IDS) - _PROMPT_TOKENS + 1
# A prefill, a chunk on top of it and decodes.
_CACHED: Passes = (_IDS[:37], _IDS[37:49], _IDS[49:50], _IDS[50:51])
_BRIEFLY: Passes = (_IDS[:4], _IDS[4:5])
_CHUNKS = (23, 1, 16, 5)
_RAGGED: Passes = (_IDS[:37], _IDS[5:17], _IDS[40:61])
# Of the largest logit: what another order of additions may change.
_ROUNDING = 1e-4
# Logits beyond it, or that are not numbers, say nothing of the size of the others.
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
        self._of_whole(_CACHED, cached=True)
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
        several = [cut for cut in cuts if len(_parts(self._handed_on[cut])) > 1]
        self._split.unused = {cut: parts for cut in several if (parts := self._unread(cut))}
        if self._split.unused and not self._exact(cuts):
            self._split.unused = {}
        return self._split.unused

    def uncached_is_wrong(self) -> bool:
        """Whether a pass without caches gives something else than mlx-lm's own run of the same ids, which has them."""
        return not self._equals_own(partial(self._all_at_once, cached=False))

    def chunks_are_wrong(self) -> bool:
        """Whether the logits depend on how a prompt is cut into passes, so that only mlx-lm's own way gives its own."""
        in_chunks = partial(self._logits, (), _in_chunks(_CHUNKS), cached=True)
        return not (self._equals_own(in_chunks) and self._equals_own(partial(self._all_at_once, cached=True)))

    def batches(self, cuts: Sequence[int]) -> bool:
        """Whether sequences of different lengths give the same in a batch, cut in the middle where that is legal: some
        attention code takes no such mask.
        """
        stages = _stages(cuts[len(cuts) // 2 :][:1], self.num_layers)
        return self._can_batch and bool(_attempt(lambda: self._batch_equals_its_sequences(stages))[0])

    def last_position_only(self) -> bool:
        """Whether the projection can be limited to the last position; not where passes cannot be redirected at all."""
        tokens, whole = mx.array([_CACHED[0]], mx.int32), LayerRange(0, self.num_layers)

        def same() -> bool:
            last = self._split.forward(tokens, layers=whole, cache=None, last_position_only=True)
            return _near(last, self._split.forward(tokens, layers=whole, cache=None)[:, -1:, :])

        return bool(_attempt(same)[0])

    def _exact(self, cuts: Sequence[int]) -> bool:
        return self._same(cuts, _CACHED, cached=True) and self._same(cuts, _CACHED[:1], cached=False)

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

    def _unread(self, cut: int) -> tuple[Part, ...]:
        read: set[Part] = set()
        before, after = _stages((cut,), self.num_layers)
        for passes, cached in ((_CACHED, True), (_CACHED[:1], False)):
            caches = [self._split.make_cache(layers) if cached else None for layers in (before, after)]
            for ids in passes:
                tokens = mx.array([ids], mx.int32)
                payload = self._split.forward(tokens, layers=before, cache=caches[0])
                self._split.evaluate(payload, caches[0])
                logits = self._split.forward(tokens, layers=after, cache=caches[1], payload=payload)
                states = [] if caches[1] is None else caches[1].states()
                read |= _read_by([logits, states], _parts(payload))
                self._split.evaluate(logits, caches[1])
        return tuple(part for part in list(_parts(self._handed_on[cut]))[1:] if part not in read)

    def _equals_own(self, run: Callable[[], list[mx.array]]) -> bool:
        """Whether the logits after the prompt and after each token behind it are those of mlx-lm's own run."""
        own = self._of_whole(_in_chunks((_PROMPT_TOKENS,)), cached=True)[-_AFTER:]
        found, _ = _attempt(run)
        return found is not None and all(_near(a[:, -1:], b) for a, b in zip(found[-_AFTER:], own, strict=True))

    def _all_at_once(self, *, cached: bool) -> list[mx.array]:
        """As without a KV cache: the prompt in one pass, then everything in one."""
        prompt = self._logits((), (_IDS[:_PROMPT_TOKENS],), cached=cached)[0]
        everything = self._logits((), (_IDS,), cached=cached)[0]
        return [prompt[:, -1:], *mx.split(everything[:, _PROMPT_TOKENS:], _AFTER - 1, axis=1)]

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

    def _batch_equals_its_sequences(self, stages: Sequence[LayerRange]) -> bool:
        """Three sequences, of which one comes later, another one leaves and a third goes on alone."""
        whole = [LayerRange(0, self.num_layers)]
        alone = [[self._split.make_cache(whole[0])] for _ in _RAGGED]
        parts = [[self._split.make_cache(layers) for layers in stages] for _ in _RAGGED]
        for ids, own, caches in zip(_RAGGED, alone, parts, strict=True):
            self._through(whole, [ids], own)
            self._through(stages, [ids], caches)

        def same(batch: Sequence[StageCache], rows: Sequence[int], token: int) -> bool:
            expected = mx.concatenate([self._through(whole, [(token,)], alone[row]) for row in rows])
            return _near(self._through(stages, [(token,)] * len(rows), batch), expected)

        batch = [StageCache.merge(list(caches)) for caches in zip(*parts[:2], strict=True)]
        if not same(batch, (0, 1), 9):
            return False
        for cache, newcomer in zip(batch, parts[2], strict=True):
            cache.extend(StageCache.merge([newcomer]))
        if not (same(batch, (0, 1, 2), 13) and same(batch, (0, 1, 2), 64)):
            return False
        left = [cache.extract(1) for cache in batch]
        for cache in batch:
            cache.filter([2, 0])
        return same(batch, (2, 0), 31) and same(left, (1,), 8)


def _attempt(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """What the action returns, or what it raised: an illegal read fails in whatever way the model's code happens to."""
    try:
        return action(), None
    except Exception as error:  # noqa: BLE001  the boundary between us and any model's code
        return None, error


def _stages(cuts: Sequence[int], num_layers: int) -> list[LayerRange]:
    return [LayerRange(*bounds) for bounds in zip((0, *cuts), (*cuts, num_layers), strict=True)]


def _in_chunks(sizes: tuple[int, ...]) -> Passes:
    """The prompt but its last token in chunks of these sizes in turn, then token by token, as mlx-lm does."""
    chunks: list[tuple[int, ...]] = []
    start, last = 0, _PROMPT_TOKENS - 1
    while start < last:
        end = min(start + sizes[len(chunks) % len(sizes)], last)
        chunks.append(_IDS[start:end])
        start = end
    return *chunks, *((token,) for token in _IDS[last:])


def _equal(a: mx.array, b: mx.array) -> bool:
    return a.shape == b.shape and bool(mx.array_equal(a, b, equal_nan=True).item())


def _near(a: mx.array, b: mx.array) -> bool:
    size: Any = mx.max(mx.where(mx.abs(b) < _MASKED, mx.abs(b), 0.0)).item()
    return a.shape == b.shape and bool(mx.allclose(a, b, 0.0, _ROUNDING * size, equal_nan=True).item())


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
    """Which of these arrays stand in the graph that the unevaluated outputs still have to run."""
    graph = io.StringIO()
    wanted = [array for _, array in tree_flatten(outputs) if isinstance(array, mx.array)]
    mx.export_to_dot(graph, *wanted, **{f"part{number}": array for number, array in enumerate(parts.values())})
    read = {int(number) for number in re.findall(r'^"part(\d+)" -> ', graph.getvalue(), re.MULTILINE)}
    return {part for number, part in enumerate(parts) if number in read}
