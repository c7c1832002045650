"""Runs steps on one worker: the caches and samplers of the sequences that pass through it.

Owns, per sequence, its cache of the worker's layers (alone, or merged with others into a slot's batch) and, on the last
stage, its sampler. Does what arrives in the order it arrives; decides nothing. All on the MLX thread.
"""

import enum
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np

from protocol.messages import KeepPrefix, OpenSequence, Row, StageFigures, Step
from protocol.values import LayerRange
from strategy.chunking import MLX_LM_CHUNK_TOKENS
from strategy.prefix import Key
from workers.cache.kv_parts import KvPart
from workers.cache.prefix_store import Handed, PrefixLost, PrefixStore, can_cut, part_of
from workers.cache.stage_cache import StageCache
from workers.engine.fitness import UnfitMessage
from workers.engine.grammar import Grammars, allowed_tokens
from workers.engine.launched import Launched
from workers.engine.logprobs import PromptScores, Unread, of_sampled
from workers.engine.pooling import Pool
from workers.engine.sampled import SampledRows, Told
from workers.engine.sampling import TokenSampler, sample_rows
from workers.kv_cache import KvSettings
from workers.model.figures import stage_figures
from workers.model.payload import arrays as payload_arrays
from workers.model.split_model import SplitModel

log = logging.getLogger(__name__)


class Uncached(enum.Enum):
    """How a pass without a KV cache, of everything that a sequence has, gives what mlx-lm gives with one.

    IN_CACHES: in caches that are thrown away; AS_MLX_LM: so, and cut into the passes that mlx-lm would have run.
    """

    PLAIN = enum.auto()
    IN_CACHES = enum.auto()
    AS_MLX_LM = enum.auto()


@dataclass(frozen=True)
class StagePlace:
    """This worker's place in a route. layers: half open."""

    layers: LayerRange
    is_last: bool


@dataclass
class _OpenedSequence:
    cached: bool
    sampler: TokenSampler
    cache: StageCache | None  # None when uncached, or while merged into a slot
    keys: Sequence[Key] = ()  # of the parts that it began with
    num_tokens: int = 0  # that were computed
    prompt_tokens: int | None = None  # known from the first step of one without cache
    pool: Pool | None = None  # of one that becomes a vector


@dataclass
class _SlotCache:
    rows: list[int] = field(default_factory=list)
    cache: StageCache | None = None


class StageExecutor:
    """The compute side of one route on one worker."""

    def __init__(
        self,
        model: SplitModel,
        stage: StagePlace,
        *,
        last_position_only: bool,
        prefixes: PrefixStore,
        kv: KvSettings | None = None,
        uncached: Uncached = Uncached.PLAIN,
        grammars: Grammars | None = None,
    ):
        """grammars: of the model; None where no answer is held to one."""
        self._model = model
        self._stage = stage
        self._last_position_only = last_position_only
        self.prefixes = prefixes
        self._kv = kv
        self._uncached = uncached
        self._grammars = grammars
        self._sequences: dict[int, _OpenedSequence] = {}
        self._slots: dict[int, _SlotCache] = {}
        self._last_sampled: dict[int, SampledRows] = {}  # by slot, for steps that run ahead
        self._scores = PromptScores()

    def __repr__(self) -> str:
        return f"StageExecutor({self._stage.layers}, {len(self._sequences)} sequences)"

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def kv_bytes(self) -> int:
        """Bytes of all caches here."""
        caches = [sequence.cache for sequence in self._sequences.values()]
        caches += [slot.cache for slot in self._slots.values()]
        return sum(cache.nbytes for cache in caches if cache is not None)

    @property
    def shared_bytes(self) -> int:
        """Bytes of the kept parts that open sequences began with."""
        return self.prefixes.bytes_of({key for sequence in self._sequences.values() for key in sequence.keys})

    def figures(self) -> StageFigures:
        """What the layers make of the fixed input; no sequence's cache changes."""
        return stage_figures(self._model, self._stage.layers)

    def clear(self) -> None:
        """Forget every sequence; what is kept of past ones stays."""
        self._sequences.clear()
        self._slots.clear()
        self._last_sampled.clear()
        self._scores.clear()

    def open(self, message: OpenSequence, keys: Sequence[Key], handed: Handed = ()) -> None:
        """A sequence begins, with the parts of earlier ones named by `keys` and what was handed over behind them.

        Where a part turns out to be lost the sequence stays unknown here, so that its first step fails and the head
        begins it anew.
        """
        try:
            cache = self.prefixes.begin(keys, self._kv_of(message), handed) if message.cached else None
        except PrefixLost as error:
            log.warning("a kept prefix is lost: %s", error)
            return
        constraint = self._grammars.constraint(message) if self._stage.is_last and self._grammars is not None else None
        sampler = TokenSampler(message.sampling, message.seed, message.history, constraint)
        pool = None if message.pooling is None else Pool(message.pooling, message.max_length)
        self._sequences[message.sequence] = _OpenedSequence(
            message.cached, sampler, cache, keys, message.computed_tokens, pool=pool
        )
        if message.scores_prompt and self._stage.is_last:
            self._scores.open(message.sequence, message.sampling)

    def _kv_of(self, message: OpenSequence) -> KvSettings | None:
        if self._kv is None or self._kv.kind != "static":
            return self._kv
        # A step that runs ahead of an answer's end writes one token more.
        return msgspec.structs.replace(self._kv, max_tokens=message.max_length + 1)

    def keep(self, message: KeepPrefix, keys: Sequence[Key]) -> None:
        """Keep parts of a sequence's cache for later ones; of one that is not open here nothing.

        Raises UnfitMessage for a part that is not computed.
        """
        sequence = self._sequences.get(message.sequence)
        if sequence is not None:
            if max((end for _, end in message.spans), default=0) > sequence.num_tokens:
                raise UnfitMessage(f"sequence {message.sequence} has only {sequence.num_tokens} tokens to keep")
            self.prefixes.keep(self._read_only_cache(message.sequence), message.spans, keys)

    def part(self, number: int, start: int, end: int) -> KvPart:
        """Tokens [start, end) of a sequence's cache for another stage; waits until they are computed.

        Raises UnfitMessage where they are not, or where the cache has more and cannot be cut.
        """
        sequence = self._sequences.get(number)
        if sequence is None or not sequence.cached or end > sequence.num_tokens:
            raise UnfitMessage(f"sequence {number} does not have {end} tokens on this worker")
        cache = self._read_only_cache(number)
        if end < sequence.num_tokens and not can_cut(cache):
            raise UnfitMessage(f"the caches of sequence {number} cannot be cut at {end}")
        everything = part_of(cache, start, end).entries
        part = KvPart(end, {index: everything[index] for index in cache.owned})
        mx.eval([entry.state for entry in part.entries.values()])
        return part

    def close(self, sequence: int) -> None:
        """A sequence ended; its row leaves its slot when the slot runs next, or now if it was the last."""
        self._sequences.pop(sequence, None)
        self._scores.close(sequence)
        for number, slot in list(self._slots.items()):
            if not self._has_open(slot):
                del self._slots[number]

    def launch(self, step: Step, tokens: np.ndarray | None, payload: Any) -> Launched:
        """Begin to compute a step; payload from the stage before or None on the first.

        tokens: (rows, N) int32; None stands for those that the slot's step before is sampling.

        Raises:
            UnfitMessage: a sequence is not open here, or the step is not the next of each.
        """
        self._require_next(step)
        sampling = self._stage.is_last and any(row.sample for row in step.rows)
        pool = self._sequences[step.rows[0].sequence].pool if self._stage.is_last else None
        is_last_enough = sampling and not self._scores.concern(step) if pool is None else pool.last_position_only
        at_end = is_last_enough and self._last_position_only
        inputs = self._sampled_before(step) if tokens is None else mx.array(tokens)
        cache = self._cache_of(step) if step.cached else None
        if cache is not None or self._uncached is Uncached.PLAIN:
            output = self._forward(inputs, cache, payload, at_end=at_end, pool=pool)
        else:
            output = self._forward_in_caches(step, inputs, payload, at_end=at_end, pool=pool)
        logprobs, rows = self._scores.of(step, inputs, output), None
        if sampling:
            rows, sampled = self._sample(output[:, -1, :], step, cache)
            logprobs = logprobs._replace(sampled=sampled)
        if self._stage.is_last:
            output = None if rows is None else rows.tokens
        made = output if pool is None else pool.pooled
        self._model.begin_evaluation([made, *logprobs.arrays], cache)
        for row in step.rows:
            self._sequences[row.sequence].num_tokens = row.position + step.num_tokens
        awaited = made if made is not None or cache is None else cache.states()
        vector = pool.pooled if pool is not None and pool.is_whole else None
        return Launched(step, output, awaited, rows, logprobs, vector)

    def _require_next(self, step: Step) -> None:
        """Every sequence of the step is open and where the step says. Raises UnfitMessage."""
        for row in step.rows:
            sequence = self._sequences.get(row.sequence)
            if sequence is None or sequence.cached != step.cached:
                raise UnfitMessage(f"sequence {row.sequence} is not open on this worker")
            if step.cached and sequence.num_tokens != row.position:
                raise UnfitMessage(f"sequence {row.sequence} is at {sequence.num_tokens}, not at {row.position}")
            if sequence.pool is not None and (len(step.rows) > 1 or row.sample):
                raise UnfitMessage(f"sequence {row.sequence} becomes a vector, nothing is sampled for it")

    def _forward(
        self, tokens: mx.array, cache: StageCache | None, payload: Any, *, at_end: bool, pool: Pool | None
    ) -> Any:
        """What the model makes of the tokens; hidden states that are pooled go into `pool`, beside which nothing is asked for."""
        run = self._model.forward if pool is None else self._model.hidden_states
        output = run(tokens, layers=self._stage.layers, cache=cache, payload=payload, last_position_only=at_end)
        if pool is not None:
            pool.add(output, tokens.shape[1])
        return output

    def _forward_in_caches(self, step: Step, tokens: mx.array, payload: Any, *, at_end: bool, pool: Pool | None) -> Any:
        """A pass of all that a sequence has, in caches that are thrown away; cut as mlx-lm would have cut it, where that
        matters: then its payload is the list of what the parts hand on.
        """
        cache = self._model.make_cache(self._stage.layers)
        if self._uncached is Uncached.IN_CACHES:
            return self._forward(tokens, cache, payload, at_end=at_end, pool=pool)
        parts = mx.split(tokens, self._ends_of_parts(step), axis=1)
        outputs = []
        for part, received in zip(parts, payload or [None] * len(parts), strict=True):
            outputs.append(self._forward(part, cache, received, at_end=at_end, pool=pool))
            self._model.begin_evaluation(outputs[-1], cache)
        if self._scores.concern(step):
            return mx.concatenate(outputs, axis=1)
        return outputs[-1] if self._stage.is_last else outputs

    def _ends_of_parts(self, step: Step) -> list[int]:
        """Where mlx-lm would have ended the passes of a sequence, but for the last: its prompt's chunks, then each token. One that
        becomes a vector has no token apart.
        """
        sequence = self._sequences[step.rows[0].sequence]
        if sequence.pool is not None:
            return list(range(MLX_LM_CHUNK_TOKENS, step.num_tokens, MLX_LM_CHUNK_TOKENS))
        sequence.prompt_tokens = sequence.prompt_tokens or step.num_tokens
        last = sequence.prompt_tokens - 1
        return [*range(MLX_LM_CHUNK_TOKENS, last, MLX_LM_CHUNK_TOKENS), *range(max(last, 1), step.num_tokens)]

    def finish(self, launched: Launched) -> Any:
        """Wait for a step. The payload for the next stage or, on the last stage, what it is `Told`."""
        # Not mx.eval: on the CPU it waits for everything that was launched since, too.
        for array in payload_arrays(launched.awaited):
            memoryview(array)  # type: ignore[arg-type]
            break
        if not self._stage.is_last:
            return launched.output
        scored, rows = launched.logprobs.read_scored(), launched.sampled
        if rows is None:
            return Told(scored=scored)
        return Told(tuple(rows.ids()), launched.logprobs.read_sampled(rows.samplers), scored, rows.failed)

    def _sample(self, logits: mx.array, step: Step, cache: StageCache | None) -> tuple[SampledRows, Unread | None]:
        wanted = [index for index, row in enumerate(step.rows) if row.sample]
        if len(wanted) < len(step.rows):
            logits = logits[mx.array(wanted)]
        samplers = [self._sequences[step.rows[index].sequence].sampler for index in wanted]
        positions = [step.rows[index].position + step.num_tokens for index in wanted]
        allowed = self._allowed(samplers, logits, step, cache)
        sampled = SampledRows(sample_rows(samplers, logits, positions, allowed), tuple(samplers))
        if step.slot is not None:
            self._last_sampled[step.slot] = sampled
        return sampled, of_sampled(samplers, logits, sampled.tokens)

    def _allowed(
        self, samplers: Sequence[TokenSampler], logits: mx.array, step: Step, cache: StageCache | None
    ) -> mx.array | None:
        """What each row's token may be, found while the device is at the logits; None where all may be anything.

        In a slot that runs ahead the ids of the step before are waited for: by then the device has this one to do.
        """
        constraints = [sampler.constraint for sampler in samplers]
        if not any(constraints):
            return None
        self._model.begin_evaluation(logits, cache)
        if step.slot in self._last_sampled and any(each is not None and each.needs_ids for each in constraints):
            self._last_sampled[step.slot].ids()
        return mx.array(allowed_tokens(constraints, logits.shape[-1]))

    def _sampled_before(self, step: Step) -> mx.array:
        assert step.slot is not None, "only a slot runs ahead"
        return self._last_sampled[step.slot].tokens[:, None]

    def _cache_of(self, step: Step) -> StageCache:
        if step.slot is None or (len(step.rows) == 1 and step.slot not in self._slots):
            sequence = self._sequences[step.rows[0].sequence]
            sequence.cache = self._own_cache(step.rows[0].sequence)
            return sequence.cache
        slot = self._slots.setdefault(step.slot, _SlotCache())
        self._arrange(slot, step.rows)
        assert slot.cache is not None
        return slot.cache

    def _own_cache(self, sequence: int) -> StageCache:
        """The cache of one sequence alone; taken out of its slot's batch where it is in one."""
        own = self._sequences[sequence].cache
        if own is not None:
            return own
        slot = next(slot for slot in self._slots.values() if sequence in slot.rows)
        assert slot.cache is not None
        index = slot.rows.index(sequence)
        own = slot.cache.extract(index)
        del slot.rows[index]
        if self._has_open(slot):
            slot.cache.filter([other for other in range(len(slot.rows) + 1) if other != index])
        else:  # it may not run again for long: who ended must not keep memory until then
            slot.rows, slot.cache = [], None
        return own

    def _read_only_cache(self, sequence: int) -> StageCache:
        """The cache of one sequence, to copy from before the next step; it stays where it is."""
        own = self._sequences[sequence].cache
        if own is not None:
            return own
        slot = next(slot for slot in self._slots.values() if sequence in slot.rows)
        assert slot.cache is not None
        return slot.cache.view(slot.rows.index(sequence))

    def _has_open(self, slot: _SlotCache) -> bool:
        return any(row in self._sequences for row in slot.rows)

    def _arrange(self, slot: _SlotCache, rows: tuple[Row, ...]) -> None:
        """Bring the slot's merged cache to exactly `rows`: drop who left, append who came with a cache of its own."""
        wanted = [row.sequence for row in rows]
        if slot.rows == wanted:
            return
        stay = _in_order(slot.rows, wanted)
        for sequence in [row for row in slot.rows if row in self._sequences and row not in stay]:
            # On its way to another slot, or come back behind others before that ran.
            self._sequences[sequence].cache = self._own_cache(sequence)
        keep = [index for index, sequence in enumerate(slot.rows) if sequence in stay]
        if slot.cache is not None and not keep:
            slot.cache = None
        elif slot.cache is not None and len(keep) < len(slot.rows):
            slot.cache.filter(keep)
        kept = [slot.rows[index] for index in keep]
        newcomers = wanted[len(kept) :]
        assert wanted == kept + newcomers, "rows keep their order; newcomers come last"
        if newcomers:
            slot.cache = self._joined(slot.cache, newcomers)
        slot.rows = wanted

    def _joined(self, cache: StageCache | None, newcomers: list[int]) -> StageCache:
        merged = StageCache.merge([self._own_cache(sequence) for sequence in newcomers])
        for sequence in newcomers:
            self._sequences[sequence].cache = None
        if cache is None:
            return merged
        cache.extend(merged)
        return cache


def _in_order(rows: Sequence[int], wanted: Sequence[int]) -> Sequence[int]:
    """The first of `wanted`, as many as there are in `rows` in that order."""
    last = -1
    for count, sequence in enumerate(wanted):
        if sequence not in rows or rows.index(sequence) <= last:
            return wanted[:count]
        last = rows.index(sequence)
    return wanted
