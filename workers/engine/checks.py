"""What arriving messages are held to: the plan that is loaded, and its model's vocabulary.

Everything that another process says of sequences, steps and prefixes is checked once, here, where it enters the engine:
MLX checks no bounds, so an id without an embedding reads foreign memory. What lies behind may trust it. Whether a sequence
or a step is there is known to who owns it, and checked there. Reads no tensor but token ids.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from protocol.messages import (
    CloseSequence,
    CopyArrived,
    CopyPrefix,
    DropPrefix,
    Generate,
    GroupPlan,
    HandedOver,
    HandOver,
    KeepPrefix,
    KnownPrefix,
    LoadStage,
    Message,
    OpenSequence,
    Pooled,
    ReadPrompt,
    Sampled,
    Step,
    StepFailed,
    StopReading,
)
from protocol.values import MAX_TOP_LOGPROBS, Buffer, Route, Sampling, TokenLogprobs, unpack_keys
from strategy.memory import grown_bytes
from strategy.vocabulary import NO_LAYERS
from workers.engine.actions import Action
from workers.engine.fitness import UnfitMessage, required_buffer
from workers.model.stage_loading import LoadedStages

# Beyond it positions and lengths are no longer numbers that MLX can index with.
MAX_TOKENS = 1 << 30

_Buffers = tuple[Buffer, ...]
Handler = Callable[[Any, _Buffers], Iterable[Action]]


class Checks:
    """See the module. name: this worker's; stages: gives what is loaded."""

    def __init__(self, name: str, stages: Callable[[], LoadedStages]):
        self._name = name
        self._stages = stages
        self._checks: Mapping[type[Message], Callable[[Any, _Buffers], None]] = {
            LoadStage: self._plan,
            Generate: self._request,
            KnownPrefix: self._kept,
            OpenSequence: self._opening,
            CloseSequence: lambda message, _: self._continues_here(message.route),
            KeepPrefix: self._keeping,
            DropPrefix: lambda message, _: self._continues_here(message.route),
            CopyPrefix: self._copying,
            CopyArrived: lambda message, _: self._loaded(message.route),
            ReadPrompt: self._reading,
            StopReading: lambda message, _: self._begins_here(message.route),
            HandOver: self._handing_over,
            HandedOver: self._handed_over,
            Step: self._step,
            Pooled: self._pooled,
            Sampled: self._sampled,
            StepFailed: lambda message, _: self._begins_here(message.route),
        }

    def __repr__(self) -> str:
        return f"Checks({self._name}, {[str(route) for route in self._stages().executors]})"

    def check(self, message: Message, buffers: _Buffers) -> None:
        """Raises UnfitMessage, and ValueError for a buffer that is no whole number of ids or keys."""
        check = self._checks.get(type(message))
        if check is not None:
            check(message, buffers)

    def before(self, handler: Handler) -> Handler:
        """The handler, behind the check of what it is given."""

        def handle(message: Message, buffers: _Buffers) -> Iterable[Action]:
            self.check(message, buffers)
            return handler(message, buffers)

        return handle

    # --- by kind

    def _plan(self, message: LoadStage, _: _Buffers) -> None:
        names = [stage.worker for stage in message.stages]
        _require(self._name in names, f"a plan without {self._name}")
        _require(len(set(names)) == len(names), "a plan that names a worker twice")
        in_line = [name for name in names if message.pipeline is not None and name in message.pipeline.workers]
        _require(in_line == list(message.pipeline or ()), "a plan whose route is not of its stages in order")
        empty = [stage for stage in message.stages if not 0 <= stage.layers.start < stage.layers.end]
        are_none = all(stage.layers == NO_LAYERS and not stage.holds_full_model for stage in empty)
        _require(are_none and not {stage.worker for stage in empty} & set(in_line), "a stage of no layers")
        own = [group for group in message.groups if self._name in group.route.workers]
        _require(len(own) <= 1, f"a plan that has {self._name} in two groups")
        _require(all(map(_is_whole, message.groups)), "a group that is none")

    def _request(self, message: Generate, buffers: _Buffers) -> None:
        self._begins_here(message.route)
        ids = _ids(required_buffer(buffers, 0, "the prompt"))
        _require(len(ids) > 0, "a prompt without tokens")
        self._known(ids)
        _require(0 < message.max_tokens <= MAX_TOKENS - len(ids), f"{message.max_tokens} tokens to generate")
        _require(0 <= message.answered <= len(ids), f"a prompt of which {message.answered} tokens are of the answer")
        self._sampling(message.sampling)
        self._known(message.prediction)
        _require(message.pooling is None or message.read_by is None, "a vector of a prompt that others read")
        if message.read_by is not None:
            self._loaded(message.read_by)
            _require(not message.scores_prompt, "a prompt that others read, with the log probabilities of its tokens")
            _require(
                message.route.is_single and not message.read_by.is_single, "a prompt that others read for them all"
            )

    def _opening(self, message: OpenSequence, _: _Buffers) -> None:
        self._continues_here(message.route)
        self._known((*message.history, *message.answer))
        _require(0 < message.max_length <= MAX_TOKENS, f"a sequence of {message.max_length} tokens")
        _require(0 <= message.computed_tokens < message.max_length, "a sequence that begins behind its end")
        self._sampling(message.sampling)

    def _kept(self, message: KnownPrefix, buffers: _Buffers) -> None:
        self._begins_here(message.route)
        keys = unpack_keys(required_buffer(buffers, 0, "the keys"))
        lengths = _ids(required_buffer(buffers, 1, "the lengths of the keys"))
        _require(len(keys) == len(lengths), f"{len(keys)} keys with {len(lengths)} lengths")
        _require(message.capacity >= 0 and all(lengths > 0), "a kept prefix of no tokens")

    def _keeping(self, message: KeepPrefix, buffers: _Buffers) -> None:
        self._continues_here(message.route)
        keys = unpack_keys(required_buffer(buffers, 0, "the keys"))
        _require(len(message.spans) == len(keys), f"{len(message.spans)} spans to keep under {len(keys)} keys")
        _require(all(0 <= start < end for start, end in message.spans), "a span of no tokens to keep")

    def _copying(self, message: CopyPrefix, _: _Buffers) -> None:
        self._loaded(message.route)
        is_another = message.worker != self._name and message.worker in message.route.workers
        _require(is_another, f"a copy for {self._name} of what {message.worker} keeps on {message.route}")

    def _reading(self, message: ReadPrompt, buffers: _Buffers) -> None:
        self._begins_here(message.route)
        ids = _ids(required_buffer(buffers, 0, "the prompt"))
        self._known(ids)
        _require(message.holder in message.route.workers, f"a prompt to read for {message.holder}, whom nobody knows")
        _require(0 <= message.start < len(ids) - 1 < MAX_TOKENS, f"{len(ids)} tokens to read from {message.start} on")

    def _handing_over(self, message: HandOver, _: _Buffers) -> None:
        self._continues_here(message.route)
        _require(message.holder in message.route.workers, f"a cache for {message.holder}, whom nobody knows")
        _require(0 <= message.start < message.end <= MAX_TOKENS, "a span of no tokens to hand over")

    def _handed_over(self, message: HandedOver, buffers: _Buffers) -> None:
        self._loaded(message.route)
        self._loaded(Route((self._name,)))
        _require(message.worker in message.route.workers, f"a cache of {message.worker}, whom nobody knows")
        _require(0 <= message.start < message.end <= MAX_TOKENS, "a span of no tokens that was handed over")
        needs = self._stages().needs_of(Route((self._name,)))
        start = message.start if needs is None or not needs.snapshots else 0
        most = 0 if needs is None else grown_bytes(needs, message.end - start)
        num_bytes = sum(memoryview(buffer).nbytes for buffer in buffers)
        _require(num_bytes <= most, f"{num_bytes} bytes that were handed over where {most} can be")

    def _step(self, message: Step, buffers: _Buffers) -> None:
        self._continues_here(message.route)
        num_rows, num_tokens = len(message.rows), message.num_tokens
        if not 0 < num_rows <= self._stages().max_rows or num_tokens <= 0:
            raise UnfitMessage(f"a step of {num_rows} rows of {num_tokens} tokens")
        is_read = message.cached and message.slot is None
        if not message.cached and (num_rows > 1 or message.slot is not None):
            raise UnfitMessage("a step whose rows do not have the slot that they need")
        if not all(0 <= row.padding < num_tokens for row in message.rows):
            raise UnfitMessage("a step whose rows are filled up with more than they can be")
        if (num_rows > 1 and is_read) or any(row.padding for row in message.rows):
            _require(is_read and self._stages().reads_together, "a step of prompts that cannot be read in one")
            _require(
                not any(row.num_sampled for row in message.rows),
                "a step that samples from prompts that are read together",
            )
        if num_rows > 1 and len({row.sequence for row in message.rows}) < num_rows:
            raise UnfitMessage("a step that names a sequence twice")
        if not all(0 <= row.position <= MAX_TOKENS for row in message.rows):
            raise UnfitMessage("a step beyond any sequence")
        if not all(0 <= row.num_sampled <= num_tokens for row in message.rows):
            raise UnfitMessage("a step that samples from more tokens than it has")
        ids = _ids(required_buffer(buffers, 0, "the step's token ids"))
        is_announced = message.route.is_shared and message.slot is not None and num_tokens == 1 and not len(ids)
        if len(ids) != num_rows * num_tokens and not is_announced:
            raise UnfitMessage(f"{len(ids)} ids for {num_rows} rows of {num_tokens} tokens")
        self._known(ids)

    def _pooled(self, message: Pooled, buffers: _Buffers) -> None:
        self._begins_here(message.route)
        vector = np.frombuffer(required_buffer(buffers, 0, "the vector"), np.float32)
        _require(len(vector) > 0, "a vector of no numbers")

    def _sampled(self, message: Sampled, _: _Buffers) -> None:
        self._begins_here(message.route)
        ids = tuple(chain(*message.tokens))
        self._known(ids)
        if message.logprobs or message.scored:
            _require(len(message.logprobs) in (0, len(ids)), "log probabilities of more ids or fewer")
            self._scores([each for each in (*message.logprobs, *chain(*message.scored)) if each is not None])

    # --- what they share

    def _loaded(self, route: Route) -> None:
        if route not in self._stages().executors:
            raise UnfitMessage(f"the route {route} is not loaded here")

    def _begins_here(self, route: Route) -> None:
        self._loaded(route)
        if route.head != self._name:
            raise UnfitMessage(f"the route {route} does not begin here")

    def _continues_here(self, route: Route) -> None:
        self._loaded(route)
        if route.head == self._name:
            raise UnfitMessage(f"the route {route} begins here, so nobody passes anything on")

    def _known(self, ids: Iterable[int]) -> None:
        found = np.fromiter(ids, np.int64) if not isinstance(ids, np.ndarray) else ids
        size = self._stages().vocabulary_size
        if found.size and not 0 <= found.min() <= found.max() < size:
            wrong = found.min() if found.min() < 0 else found.max()
            raise UnfitMessage(f"token id {wrong} is outside the model's vocabulary of {size}")

    def _scores(self, scores: Sequence[TokenLogprobs]) -> None:
        self._known(token for score in scores for token, _ in score.top)
        _require(all(len(score.top) <= MAX_TOP_LOGPROBS for score in scores), "more of the likeliest ids than can be")
        numbers = (*(score.logprob for score in scores), *(number for score in scores for _, number in score.top))
        _require(all(map(math.isfinite, numbers)), "a log probability that is no number")

    def _sampling(self, sampling: Sampling) -> None:
        biases = sampling.logit_bias or {}
        self._known(biases)
        numbers = (
            sampling.temperature, sampling.top_p, sampling.min_p, sampling.repetition_penalty, sampling.presence_penalty,
            sampling.frequency_penalty, *biases.values(),
        )  # fmt: skip
        _require(
            all(number is None or math.isfinite(number) for number in numbers), "a setting of sampling is no number"
        )
        _require(
            sampling.logprobs is None or 0 <= sampling.logprobs <= MAX_TOP_LOGPROBS,
            f"log probabilities of {sampling.logprobs} ids at each place",
        )
        _require(sampling.min_tokens >= 0, f"at least {sampling.min_tokens} tokens to generate")


def _require(holds: object, otherwise: str) -> None:
    if not holds:
        raise UnfitMessage(otherwise)


def _is_whole(group: GroupPlan) -> bool:
    """Whether each stage has all of its ranks, and layers that begin where those before it end."""
    ends = [0, *(end for _, end in group.layers)]
    follows = all(start == before < end for before, (start, end) in zip(ends, group.layers, strict=False))
    return group.route.is_sound and group.route.is_shared and len(group.layers) == group.route.num_stages and follows


def _ids(buffer: Buffer) -> "np.ndarray":
    return np.frombuffer(buffer, np.int32)
