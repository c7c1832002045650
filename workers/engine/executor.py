"""Runs steps on one worker: the caches and samplers of the sequences that pass through it.

Owns, per sequence, its cache of the worker's layers (alone, or merged with others into a slot's batch) and, on the last
stage, its sampler. Does what arrives in the order it arrives; decides nothing. All on the MLX thread.
"""

import enum
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np

from protocol.messages import KeepPrefix, OpenSequence, StageFigures, Step
from protocol.values import LayerRange
from strategy.chunking import MLX_LM_CHUNK_TOKENS
from strategy.prefix import Key
from workers.cache.kv_parts import KvPart
from workers.cache.prefix_store import Handed, PrefixLost, PrefixStore, can_cut, part_of
from workers.cache.stage_cache import StageCache
from workers.engine.fitness import UnfitMessage
from workers.engine.grammar import Grammars
from workers.engine.launched import Launched
from workers.engine.logprobs import PromptScores, Unread, of_sampled
from workers.engine.pooling import Pool
from workers.engine.sampled import SampledRows, SamplingRows, Told
from workers.engine.sampling import TokenSampler, sample_places
from workers.engine.sequence_caches import SequenceCaches
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
    """This worker's place in a route. layers: half open; is_silent: one of several ranks that have the last of them, of which another
    samples.
    """

    layers: LayerRange
    is_last: bool
    is_silent: bool = False


@dataclass
class _OpenedSequence:
    cached: bool
    sampler: TokenSampler
    keys: Sequence[Key] = ()  # of the parts that it began with
    num_tokens: int = 0  # that were computed, guesses included
    prompt_tokens: int | None = None  # known from the first step of one without cache
    pool: Pool | None = None  # of one that becomes a vector
    has_sampled: bool = False


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
        self._caches = SequenceCaches()
        self._last_sampled: dict[int, SampledRows] = {}  # by slot, for steps that run ahead
        self._scores = PromptScores()

    def __repr__(self) -> str:
        return f"StageExecutor({self._stage.layers}, {len(self._sequences)} sequences)"

    def __len__(self) -> int:
        return len(self._sequences)

    @property
    def kv_bytes(self) -> int:
        """Bytes of all caches here."""
        return self._caches.nbytes

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
        self._caches.clear()
        self._last_sampled.clear()
        self._scores.clear()

    def open(self, message: OpenSequence, keys: Sequence[Key], handed: Handed = ()) -> bool:
        """A sequence begins, if it does, with the parts of earlier ones named by `keys` and what was handed over behind them.

        Where a part turns out to be lost the sequence stays unknown here, so that its first step fails and the head
        begins it anew.
        """
        try:
            cache = self.prefixes.begin(keys, self._kv_of(message), handed) if message.cached else None
        except PrefixLost as error:
            log.warning("a kept prefix is lost: %s", error)
            return False
        samples = self._stage.is_last and not self._stage.is_silent
        constraint = self._grammars.constraint(message) if samples and self._grammars is not None else None
        sampler = TokenSampler(message.sampling, message.seed, message.history, constraint)
        pool = None if message.pooling is None else Pool(message.pooling, message.max_length)
        self._sequences[message.sequence] = _OpenedSequence(
            message.cached, sampler, keys, message.computed_tokens, pool=pool
        )
        if cache is not None:
            self._caches.open(message.sequence, cache)
        if message.scores_prompt and self._stage.is_last:
            self._scores.open(message.sequence, message.sampling)
        return True

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
            num_excess = sequence.num_tokens - max((end for _, end in message.spans), default=sequence.num_tokens)
            if num_excess < 0:
                raise UnfitMessage(f"sequence {message.sequence} has only {sequence.num_tokens} tokens to keep")
            self.prefixes.keep(self._caches.read_only(message.sequence, num_excess), message.spans, keys)

    def part(self, number: int, start: int, end: int) -> KvPart:
        """Tokens [start, end) of a sequence's cache for another stage; waits until they are computed.

        Raises UnfitMessage where they are not, or where the cache has more and cannot be cut.
        """
        sequence = self._sequences.get(number)
        if sequence is None or not sequence.cached or end > sequence.num_tokens:
            raise UnfitMessage(f"sequence {number} does not have {end} tokens on this worker")
        cache = self._caches.read_only(number)
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
        self._caches.close(sequence)

    def launch(self, step: Step, tokens: np.ndarray | None, payload: Any) -> Launched:
        """Begin to compute a step; payload from the stage before or None on the first.

        tokens: (rows, N) int32; None stands for those that the slot's step before is sampling. A step behind guesses that the last
        stage knows to be wrong is stale there, and changes nothing.

        Raises:
            UnfitMessage: a sequence is not open here, or the step is not the next of each.
        """
        if self._is_stale(step, tokens):
            return Launched(step, is_stale=True)
        self._require_next(step)
        sampling = self._stage.is_last and any(row.num_sampled for row in step.rows)
        pool = self._sequences[step.rows[0].sequence].pool if self._stage.is_last else None
        last = self._last_positions(step, pool) if self._stage.is_last else None
        inputs = self._sampled_before(step) if tokens is None else mx.array(tokens)
        cache = self._caches.of(step, lambda number: self._sequences[number].num_tokens) if step.cached else None
        if cache is not None or self._uncached is Uncached.PLAIN:
            output = self._forward(inputs, cache, payload, last=last, pool=pool)
        else:
            output = self._forward_in_caches(step, inputs, payload, last=last, pool=pool)
        if step.cached:
            self._caches.settle(step)
        logprobs, rows, is_first = self._scores.of(step, inputs, output), None, False
        if sampling and not self._stage.is_silent:
            is_first = self._note_first(step)
            rows, sampled = self._sample(output, step, tokens, cache)
            logprobs = logprobs._replace(sampled=sampled)
        if self._stage.is_last:
            output = rows.tokens if rows is not None else self._of_others(output) if sampling else None
        made = output if pool is None else pool.pooled
        self._model.begin_evaluation([made, *logprobs.arrays], cache)
        for row in step.rows:
            self._sequences[row.sequence].num_tokens = step.end_of(row)
        awaited = made if made is not None or cache is None else cache.states()
        vector = pool.pooled if pool is not None and pool.is_whole else None
        return Launched(step, output, awaited, rows, logprobs, vector, is_first)

    def _of_others(self, _: mx.array) -> mx.array | None:
        """Of the logits that another rank samples from, what is evaluated here."""
        return None

    def _note_first(self, step: Step) -> bool:
        """Note that the sequences of a step have a token now; whether it is the first of one."""
        sampled = [self._sequences[row.sequence] for row in step.rows if row.num_sampled]
        is_first = not all(sequence.has_sampled for sequence in sampled)
        for sequence in sampled:
            sequence.has_sampled = True
        return is_first

    def _is_stale(self, step: Step, tokens: np.ndarray | None) -> bool:
        """Whether this is the last stage and the token before a step's guesses is not the one that was sampled there."""
        row = step.rows[0]
        sequence = self._sequences.get(row.sequence)
        if row.num_sampled <= 1 or not step.cached or tokens is None or sequence is None or not self._stage.is_last:
            return False
        if step.slot in self._last_sampled:
            self._last_sampled[step.slot].ids()
        place = step.num_tokens - row.num_sampled
        return not sequence.sampler.goes_on_with(int(tokens[0, place]), row.position + place)

    def _require_next(self, step: Step) -> None:
        """Every sequence of the step is open and where the step says. Raises UnfitMessage."""
        for row in step.rows:
            sequence = self._sequences.get(row.sequence)
            if sequence is None or sequence.cached != step.cached:
                raise UnfitMessage(f"sequence {row.sequence} is not open on this worker")
            if step.cached and not self._can_begin(row.sequence, row.position):
                raise UnfitMessage(f"sequence {row.sequence} is at {sequence.num_tokens}, not at {row.position}")
            if step.cached and row.num_sampled > 1 and len(step.rows) > 1:
                raise UnfitMessage(f"sequence {row.sequence} has guesses, for which it has to be alone")
            if sequence.pool is not None and (len(step.rows) > 1 or row.num_sampled):
                raise UnfitMessage(f"sequence {row.sequence} becomes a vector, nothing is sampled for it")

    def _can_begin(self, sequence: int, position: int) -> bool:
        """Whether the cache of a sequence is at a position or can go back to it."""
        num_tokens = self._sequences[sequence].num_tokens
        return position == num_tokens or (position < num_tokens and self._caches.can_return(sequence, position))

    def _last_positions(self, step: Step, pool: Pool | None) -> int | None:
        """How many of the last positions of a step are all that is asked for; None where others are, too, or cannot be left out."""
        if pool is not None:
            is_enough, count = pool.last_position_only, 1
        else:
            count = max(row.num_sampled for row in step.rows)
            is_enough = count > 0 and not self._scores.concern(step)
        return count if is_enough and self._last_position_only else None

    def _forward(
        self, tokens: mx.array, cache: StageCache | None, payload: Any, *, last: int | None, pool: Pool | None
    ) -> Any:
        """What the model makes of the tokens; hidden states that are pooled go into `pool`, beside which nothing is asked for."""
        run = self._model.forward if pool is None else self._model.hidden_states
        output = run(tokens, layers=self._stage.layers, cache=cache, payload=payload, last_positions=last)
        if pool is not None:
            pool.add(output, tokens.shape[1])
        return output

    def _forward_in_caches(
        self, step: Step, tokens: mx.array, payload: Any, *, last: int | None, pool: Pool | None
    ) -> Any:
        """A pass of all that a sequence has, in caches that are thrown away; cut as mlx-lm would have cut it, where that
        matters: then its payload is the list of what the parts hand on.
        """
        cache = self._model.make_cache(self._stage.layers)
        if self._uncached is Uncached.IN_CACHES:
            return self._forward(tokens, cache, payload, last=last, pool=pool)
        parts = mx.split(tokens, self._ends_of_parts(step), axis=1)
        outputs = []
        for part, received in zip(parts, payload or [None] * len(parts), strict=True):
            outputs.append(self._forward(part, cache, received, last=None if last is None else 1, pool=pool))
            self._model.begin_evaluation(outputs[-1], cache)
        if self._stage.is_last and (self._scores.concern(step) or step.rows[0].num_sampled > 1):
            return mx.concatenate(outputs, axis=1)
        return outputs[-1] if self._stage.is_last else outputs

    def _ends_of_parts(self, step: Step) -> list[int]:
        """Where mlx-lm would have ended the passes of a sequence, but for the last: its prompt's chunks, then each token. One that
        becomes a vector has no token apart.
        """
        sequence = self._sequences[step.rows[0].sequence]
        if sequence.pool is not None:
            return list(range(MLX_LM_CHUNK_TOKENS, step.num_tokens, MLX_LM_CHUNK_TOKENS))
        num_known = step.num_tokens - max(step.rows[0].num_sampled - 1, 0)
        sequence.prompt_tokens = sequence.prompt_tokens or num_known
        last = sequence.prompt_tokens - 1
        return [*range(MLX_LM_CHUNK_TOKENS, last, MLX_LM_CHUNK_TOKENS), *range(max(last, 1), step.num_tokens)]

    def finish(self, launched: Launched) -> Any:
        """Wait for a step. The payload for the next stage or, on the last stage, what it is `Told`."""
        if launched.is_stale:
            return Told(tokens=((),))
        # Not mx.eval: on the CPU it waits for everything that was launched since, too.
        for array in payload_arrays(launched.awaited):
            memoryview(array)  # type: ignore[arg-type]
            break
        if not self._stage.is_last:
            return launched.output
        if launched.sampled is None:
            return Told(scored=launched.logprobs.read_scored())
        return launched.sampled.told(launched.logprobs)

    def _sample(
        self, output: mx.array, step: Step, tokens: np.ndarray | None, cache: StageCache | None
    ) -> tuple[SampledRows, Unread | None]:
        rows = SamplingRows.of(step, tokens, lambda sequence: self._sequences[sequence].sampler)
        logits, places = rows.taken_from(output), rows.places
        allowed = self._allowed(rows, logits, step, cache)
        sampled = SampledRows(sample_places(places, logits, allowed), rows.rows)
        if step.slot is not None:
            self._last_sampled[step.slot] = sampled
        return sampled, of_sampled(places, logits, sampled.tokens)

    def _allowed(self, rows: SamplingRows, logits: mx.array, step: Step, cache: StageCache | None) -> mx.array | None:
        """What each place's token may be, found while the device is at the logits; None where all may be anything.

        In a slot that runs ahead the ids of the step before are waited for: by then the device has this one to do.
        """
        constraints = rows.constraints
        if not any(constraints):
            return None
        self._model.begin_evaluation(logits, cache)
        if step.slot in self._last_sampled and any(each is not None and each.needs_ids for each in constraints):
            self._last_sampled[step.slot].ids()
        return mx.array(rows.allowed(logits.shape[-1]))

    def _sampled_before(self, step: Step) -> mx.array:
        assert step.slot is not None, "only a slot runs ahead"
        return self._last_sampled[step.slot].tokens[:, None]
