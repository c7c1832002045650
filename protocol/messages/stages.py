"""What the stages of a route tell each other; the coordinator sees none of it."""

from typing import Any

import msgspec

from protocol.messages.message import Message
from protocol.values import LayerRange, Pooling, Route, Sampling, SequenceNumber, TokenLogprobs


class OpenSequence(Message, frozen=True, kw_only=True):
    """A sequence begins on a stage, before its first step.

    request_id: as of Generate; max_length: the most tokens that it can come to; computed_tokens: how many its cache begins
    with. history: the last ids before the first sampled one, which penalties look at; end_tokens: what ends its answer;
    answer: the ids that it already has, where its sampling looks back at them. scores_prompt: as of Generate; pooling: nothing
    is sampled, its max_length tokens become a vector. Buffer 0: keys of the parts that its cache begins with. Passed on from
    stage to stage, so that it stays in front of the sequence's steps.
    """

    sequence: int
    request_id: SequenceNumber = 0
    route: Route
    cached: bool
    sampling: Sampling
    seed: int
    history: tuple[int, ...]
    max_length: int
    computed_tokens: int = 0
    scores_prompt: bool = False
    end_tokens: tuple[int, ...] = ()
    answer: tuple[int, ...] = ()
    pooling: Pooling | None = None


class CloseSequence(Message, frozen=True, kw_only=True):
    """A sequence ended; its cache is freed. Passed on like OpenSequence."""

    sequence: int
    route: Route


class KeepPrefix(Message, frozen=True, kw_only=True):
    """Keep parts of a running sequence's cache: spans of tokens, keys in buffer 0. Passed on like OpenSequence."""

    sequence: int
    route: Route
    spans: tuple[tuple[int, int], ...]


class DropPrefix(Message, frozen=True, kw_only=True):
    """Forget the parts whose keys are in buffer 0. Passed on like OpenSequence."""

    route: Route


class CopyPrefix(Message, frozen=True, kw_only=True):
    """For the worker that holds copies of what `worker` keeps on a route: a part of its stage of these layers.

    part: structure of the part (see workers.cache.kv_parts), number of tokens included; is_earlier: it is from before this
    epoch and less recently used than whatever came before it, so that nothing has to go for it. Buffer 0: its key; its
    arrays are in the buffers behind that. Each is answered by a CopyArrived.
    """

    route: Route
    worker: str
    layers: LayerRange
    part: Any
    is_earlier: bool


class CopyArrived(Message, frozen=True, kw_only=True):
    """A CopyPrefix was taken or refused; another may come."""

    route: Route


class ReadPrompt(Message, frozen=True, kw_only=True):
    """From a worker with the full model to the head of a pipeline: read a prompt, whose answer the `holder` generates alone.

    sequence, request_id: as of Generate; start: how many tokens of the prompt the holder has in its caches. Prompt ids are
    buffer 0 (int32). What the stages make of all tokens but the last comes back as HandedOver.
    """

    sequence: int
    request_id: SequenceNumber = 0
    route: Route
    holder: str
    start: int
    scope: str = ""
    client: str = ""


class StopReading(Message, frozen=True, kw_only=True):
    """The holder needs nothing more of a prompt. Unknown sequences are ignored: it may just have been read."""

    sequence: int
    route: Route


class HandOver(Message, frozen=True, kw_only=True):
    """Give the `holder` the tokens [start, end) of a running sequence's cache. Passed on like OpenSequence.

    sequence: the route's number; request: the coordinator's, by which the holder knows it. Caches that cannot be cut are
    given whole, as they are after `end` tokens.
    """

    sequence: int
    route: Route
    holder: str
    request: int
    start: int
    end: int


class HandedOver(Message, frozen=True, kw_only=True):
    """For the holder: tokens [start, end) of a prompt in the caches of `worker`'s stage. sequence: the coordinator's number.

    part: structure of the part (see workers.cache.kv_parts), whose arrays are in the buffers. One worker's parts follow each
    other without a gap.
    """

    sequence: int
    route: Route
    worker: str
    start: int
    end: int
    part: Any


class ReadingFailed(Message, frozen=True, kw_only=True):
    """For the holder: what a pipeline reads for it will not be whole. sequence: the coordinator's number."""

    sequence: int
    message: str


class Row(msgspec.Struct, frozen=True, array_like=True):
    """One sequence's part in a step: `position` of its first token, and from how many of its last ones is sampled. padding: how many of the
    step's tokens, the last ones, are none of its: of a prompt that is read with longer ones.

    Where from several, all tokens behind the first of those are guesses at what is sampled before them. That first one may be a guess,
    too, where the step goes on behind another's guesses.
    """

    sequence: int
    position: int
    num_sampled: int
    padding: int = 0


class Step(Message, frozen=True, kw_only=True):
    """One micro-batch on its way through the stages of `route`. Token ids (rows x tokens, int32) are buffer 0.

    slot: the batch whose merged cache the rows share, None for prefill, whose rows are prompts, and uncached steps; payload: structure of the hidden states (see workers.payload),
    its arrays in the buffers after the first.
    """

    number: int
    route: Route
    slot: int | None
    cached: bool
    rows: tuple[Row, ...]
    num_tokens: int
    payload: Any = None

    @property
    def size(self) -> int:
        """Tokens that are computed, padding included."""
        return len(self.rows) * self.num_tokens

    def end_of(self, row: Row) -> int:
        """Behind the last token of a row."""
        return row.position + self.num_tokens - row.padding


class Sampled(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The last stage's answer to the head: the ids of each row that is sampled from, in row order.

    tokens: of a row one, and one more for each guess that came true, up to the first that did not; none where the step went on behind
    guesses that were wrong. logprobs: for each of the ids,
    row after row, None where they are not asked for; none at all where they are for no row. scored: for each row of the step those
    of its prompt's own tokens, all but the token at 0; none at all where no row has such. failed: places in `tokens` of those that
    count for nothing, since their sequences cannot go on, and why.
    """

    number: int
    route: Route
    tokens: tuple[tuple[int, ...], ...]
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    scored: tuple[tuple[TokenLogprobs, ...], ...] = ()
    failed: tuple[tuple[int, str], ...] = ()


class Pooled(Message, frozen=True, kw_only=True):
    """The last stage's vector of a sequence with `pooling`, in front of the answer to its last step. Buffer 0: as of Embedded."""

    sequence: int
    route: Route


class StepFailed(Message, frozen=True, kw_only=True):
    """A stage could not run a step; every row of it fails with `message`."""

    number: int
    route: Route
    message: str
