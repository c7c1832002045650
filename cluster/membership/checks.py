"""What messages from workers are held to, where they enter the coordinator: who may say what, of whom, in which numbers.

A stranger may join and nothing else; a member speaks for itself alone and in the kinds that are a worker's. What lies behind
may trust it; whether a sequence or a plan is there is known to who owns it. Whatever does not fit raises `WireError`.
"""

import math
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from protocol.codec import Envelope
from protocol.errors import WireError
from protocol.messages import (
    Embedded,
    FiguresComputed,
    Heartbeat,
    HeldModel,
    Inspected,
    Join,
    Leave,
    LinkFigures,
    LinkLost,
    LinksMeasured,
    Loaded,
    LoadFailed,
    LoadProgress,
    Message,
    ModelsListed,
    PrefillProgress,
    Prepared,
    PromptLogprobs,
    Reused,
    SequenceFailed,
    StageFigures,
    StepOverdue,
    StepsRecorded,
    Tokens,
    Update,
)
from protocol.step_reports import decode_report
from protocol.values import MAX_TOP_LOGPROBS, NAME_PATTERN, Buffer, LayerRange, Peer, TokenLogprobs
from strategy.group_sums import GroupSums
from strategy.layer_speeds import LayerSpeeds
from strategy.stage_speed import StageSpeed

OF_MEMBERS: tuple[type[Message], ...] = (
    Embedded,
    FiguresComputed,
    Heartbeat,
    Inspected,
    Leave,
    LinkLost,
    LinksMeasured,
    LoadFailed,
    LoadProgress,
    Loaded,
    ModelsListed,
    PrefillProgress,
    Prepared,
    PromptLogprobs,
    Reused,
    SequenceFailed,
    StepOverdue,
    StepsRecorded,
    Tokens,
)
# Beyond these nothing is a count of bytes, tokens or layers of any machine or model.
_MOST = 1 << 60
_MOST_LAYERS = 1 << 16
_MOST_ADDRESSES = 64
_MOST_STAGES, _MOST_SUMS = 16, 1 << 16
_MOST_SIZE = 1 << 20
_MOST_LINKS, _MOST_MODELS, _MOST_CHARACTERS = 4096, 4096, 256
# What a step of any machine takes, and a token of it at least.
_MOST_SECONDS, _LEAST_SECONDS, _MOST_SIZES = 1e6, 1e-12, 64
_NAME = re.compile(NAME_PATTERN)
_NUMBERS = (int, float)


def check_stranger(envelope: Envelope) -> Join:
    """The Join of whoever wants to be admitted; its inboxes have the key that it was sent with. Raises WireError."""
    join = envelope.message
    _require(isinstance(join, Join), f"a stranger's {type(join).__name__}")
    assert isinstance(join, Join)
    _require(join.peer.public_key == join.data.public_key == envelope.key, "a Join with somebody else's key")
    _require(_NAME.fullmatch(join.name), "a Join under a name that is none")
    _require(join.pid > 0 and 0 <= join.memory_limit_bytes <= _MOST, "a Join of no process")
    _require(all(map(_are_layers, join.held)), "a Join with layers of no model")
    return join


def check_member(envelope: Envelope, worker: str) -> None:
    """What the worker of that name says. Raises WireError."""
    message = envelope.message
    kind = type(message).__name__
    _require(isinstance(message, OF_MEMBERS), f"a {kind}, which is no worker's")
    _require(worker in _speaks_for(message, worker), f"a {kind} in another worker's name")
    _require(_is_finite(message), f"a {kind} with numbers that are none")
    match message:
        case Tokens(updates=updates):
            _require(all(map(_is_scored, updates)), "log probabilities of no token")
        case PromptLogprobs(entries=entries):
            _require(all(map(_is_score, entries)), "log probabilities of no token")
        case Embedded() | StepsRecorded():
            _check_buffer(message, envelope.buffers, worker)
        case Prepared(layers=layers):
            _require(_are_layers(layers), "layers of no model")
        case LinksMeasured(links=links):
            _require(len(links) <= _MOST_LINKS, f"figures of {len(links)} links")
            _require(all(map(_are_figures, links)), "figures of no link")
        case Inspected(num_layers=num_layers, legal_cuts=cuts):
            _require(0 < num_layers <= _MOST_LAYERS, f"a model of {num_layers} layers")
            _require(all(0 < cut < num_layers for cut in cuts), "cuts outside the model")
        case ModelsListed(models=models):
            _require(len(models) <= _MOST_MODELS, f"{len(models)} models")
            _require(all(map(_is_model, models)), "a model that is none")
        case FiguresComputed(stages=stages):
            _require(len(stages) <= _MOST_STAGES, f"figures of {len(stages)} stages")
            _require(all(map(_are_of_a_stage, stages)), "figures of no stage")
        case Loaded(vocabulary_size=size, prefixes=prefixes, layers=layer_speeds):
            _require(size > 0, f"a vocabulary of {size}")
            _require(len(envelope.buffers) == 2 * len(prefixes), "keys that are not those of its routes")
            speeds = [prefix.speed for prefix in prefixes if prefix.speed is not None]
            _require(all(map(_is_speed, speeds)), "speeds of no stage")
            sums = [prefix.sums for prefix in prefixes if prefix.sums is not None]
            _require(all(map(_are_sums, sums)), "sums of no group")
            _require(layer_speeds is None or _are_of_a_model(layer_speeds), "speeds of no layers")


def _check_buffer(message: Embedded | StepsRecorded, buffers: Sequence[Buffer], worker: str) -> None:
    if isinstance(message, Embedded):
        _require(len(buffers) == 1 and _is_vector(buffers[0]), "a vector that is none")
    else:
        _require(len(buffers) == 1, "steps without a report")
        _require(decode_report(buffers[0]).worker == worker, "steps of another worker")


def _speaks_for(message: Message, sender: str) -> tuple[str, ...]:
    """Who may say a message: whom it names, both ends of a link, or whoever sent one that names nobody."""
    if isinstance(message, LinkLost):
        return message.worker, message.peer
    return (getattr(message, "worker", sender),)


def _require(holds: object, what: str) -> None:
    if not holds:
        raise WireError(what)


def can_be_reached(peer: Peer) -> bool:
    """Whether a peer says where it is by nothing but hosts and ports, and few of them."""
    endpoints = [peer.endpoint, *(address.endpoint for address in peer.addresses)]
    is_port = 0 <= peer.answer_port < 1 << 16
    return is_port and len(endpoints) <= _MOST_ADDRESSES and all(map(_is_address, endpoints))


def _is_address(endpoint: str) -> bool:
    """Whether this is a host and a port, not a file or another thing that ZeroMQ could open."""
    try:
        parts = urlsplit(endpoint)
        return parts.scheme == "tcp" and bool(parts.hostname) and bool(parts.port) and not parts.path
    except ValueError:
        return False


def _is_vector(buffer: Buffer) -> bool:
    """Whether it can be numbers in float32, few enough for a model. What is no number there fails its request, nothing else."""
    return 0 < len(buffer) <= 4 * _MOST_SIZE and len(buffer) % 4 == 0


def _are_layers(layers: LayerRange) -> bool:
    return 0 <= layers.start < layers.end <= _MOST_LAYERS


def _are_figures(figures: LinkFigures) -> bool:
    numbers = (figures.round_trip_us, figures.bytes_per_s)
    texts = (figures.to, figures.interface, figures.kind, figures.address)
    return (
        all(number is None or 0 <= number <= _MOST for number in numbers) and max(map(len, texts)) <= _MOST_CHARACTERS
    )


def _is_model(model: HeldModel) -> bool:
    """Names of models are shown to people, never used as paths."""
    texts = (model.digest, model.name, model.source)
    are_shown = all(len(text) <= _MOST_CHARACTERS and text.isprintable() for text in texts)
    return are_shown and all(size is None or 0 <= size <= _MOST for size in (model.held_bytes, model.num_bytes))


def _is_scored(update: Update) -> bool:
    """Whether what is told beside an update's ids, nearly always nothing, is told of each."""
    return not update.logprobs or (len(update.logprobs) == len(update.tokens) and all(map(_is_score, update.logprobs)))


def _is_score(score: TokenLogprobs) -> bool:
    """Ids are looked up, and may be those of no token."""
    logprobs = (score.logprob, *(logprob for _, logprob in score.top))
    return len(score.top) <= MAX_TOP_LOGPROBS and all(map(math.isfinite, logprobs))


def _are_of_a_stage(stage: StageFigures) -> bool:
    return _are_layers(stage.layers) and sum(map(len, stage.rows)) <= _MOST_SUMS


def _is_speed(speed: StageSpeed) -> bool:
    sizes = [rows for rows, _ in speed.decode]
    seconds = [seconds for _, seconds in speed.decode]
    seconds += [speed.decode_context_s, speed.chunk.fixed_s, speed.chunk.token_s, speed.chunk_context_s]
    are_rising = sizes == sorted(set(sizes)) and 0 < len(sizes) <= _MOST_SIZES and 0 < sizes[0] <= sizes[-1] <= _MOST
    are_seconds = all(map(_are_seconds, seconds)) and speed.chunk.token_s >= _LEAST_SECONDS
    return are_rising and are_seconds and 0 <= speed.payload_bytes <= _MOST


def _are_sums(sums: GroupSums) -> bool:
    counts = (sums.num_sums, sums.row_bytes, sums.chunk_bytes)
    texts = (sums.transport, sums.why_not_wanted or "")
    are_shown = all(len(text) <= _MOST_CHARACTERS and text.isprintable() for text in texts)
    are_seconds = all(map(_are_seconds, (sums.row_s, sums.chunk_s)))
    return are_shown and are_seconds and all(0 <= count <= _MOST for count in counts)


def _are_of_a_model(speeds: LayerSpeeds) -> bool:
    ends = [part for part in (speeds.overhead, speeds.embedding, speeds.head) if part is not None]
    seconds = [*speeds.decode_s, *speeds.chunk_s, *(each for part in ends for each in (part.decode_s, part.chunk_s))]
    are_seconds = all(each is None or _are_seconds(each) for each in seconds)
    are_layers = 0 < len(speeds.decode_s) == len(speeds.chunk_s) <= _MOST_LAYERS
    return are_seconds and are_layers and 0 < speeds.chunk_tokens <= _MOST


def _are_seconds(number: float) -> bool:
    return 0 <= number <= _MOST_SECONDS


def _is_finite(message: Message) -> bool:
    """Whether every number of a message's own fields is one that can be counted with, none of them negative."""
    values = [getattr(message, name) for name in type(message).__struct_fields__]
    numbers = [value for value in values if isinstance(value, _NUMBERS)]
    return all(math.isfinite(number) and 0 <= number <= _MOST for number in numbers)
