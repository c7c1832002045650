"""Every message between processes: its type, its bytes, and the one place where bytes become a typed value.

A message on the wire is `[prefix | header | raw buffer ...]`: the prefix is the epoch (unsigned 64 bits, big endian)
and the kind (unsigned 16 bits); the header is msgpack of the struct's fields; tensors travel only as raw buffers. A
message of an older epoch than the receiver's plan is dropped by the receiver. Nothing is ever unpickled. Whatever does
not decode within the limits raises `WireError` and nothing else.
"""

import struct
from collections.abc import Sequence
from typing import Any

import msgpack
import msgspec

from cluster.errors import WireError
from cluster.requests import Sampling

PROTOCOL = 1
MAX_HEADER_BYTES = 4 << 20
MAX_BUFFERS = 4096
_LIMITS: dict[str, Any] = {
    "strict_map_key": False,
    "max_str_len": 1 << 20,
    "max_bin_len": 0,
    "max_array_len": 1 << 20,
    "max_map_len": 1 << 16,
    "max_ext_len": 0,
}
_PREFIX = struct.Struct(">QH")
_header = msgspec.msgpack.Encoder()  # msgpack's own packer allocates a megabyte for each message

Buffer = bytes | memoryview


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every message."""


class Layers(msgspec.Struct, frozen=True, array_like=True):
    """A half-open range of decoder layers."""

    start: int
    end: int


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Where a process receives: a ZeroMQ endpoint and its CURVE public key (Z85 text)."""

    endpoint: str
    public_key: str


class StagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a plan: the worker that holds it, where to reach that worker, and the layers."""

    worker: str
    peer: Peer
    layers: Layers
    holds_full_model: bool


# --- worker to coordinator


class Join(Message, frozen=True, kw_only=True):
    """A worker asks to be admitted. `secret` proves that it was given the cluster's token."""

    protocol: int
    secret: str
    name: str
    host: str
    pid: int
    peer: Peer
    memory_limit_bytes: int


class Heartbeat(Message, frozen=True, kw_only=True):
    """Sent every 0.5 s. Bytes as MLX counts them. steps, rows and busy_s (seconds in steps) count from the start of the
    process; queued: messages that wait for the compute thread; prefix_bytes, disk_bytes: kept of past sequences;
    shared_bytes: of prefix_bytes, what running sequences began with.
    """

    worker: str
    weights_bytes: int
    kv_bytes: int
    prefix_bytes: int
    shared_bytes: int
    disk_bytes: int
    running: int
    queued: int
    steps: int
    rows: int
    busy_s: float


class Inspected(Message, frozen=True, kw_only=True):
    """What a dry run of the model's architecture found; see `workers.inspection`."""

    worker: str
    architecture: str
    num_layers: int
    legal_cuts: tuple[int, ...]
    why_not: str | None
    batches: bool
    last_position_only: bool
    context_tokens: int | None


class LoadProgress(Message, frozen=True, kw_only=True):
    """Weights read so far, in bytes; sent after each layer."""

    worker: str
    loaded_bytes: int


class KvGrowth(msgspec.Struct, frozen=True, array_like=True):
    """Caches that take `token_bytes` for each token, up to `max_tokens` (None: without end)."""

    token_bytes: int
    max_tokens: int | None


class KvNeeds(msgspec.Struct, frozen=True, kw_only=True):
    """What the caches of one sequence take on one stage. snapshots: they cannot be cut at any token."""

    fixed_bytes: int
    growth: tuple[KvGrowth, ...]
    snapshots: bool


class KeptPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """A route's store on a stage, and what its sequences need there."""

    route: tuple[str, ...]
    needs: KvNeeds


class Loaded(Message, frozen=True, kw_only=True):
    """The stage (and the full model where planned) is in memory and has run once.

    Buffers: for each of `prefixes` the keys that survived on disk (16 bytes each, least recently used first) and their
    numbers of tokens (int32).
    """

    worker: str
    weights_bytes: int
    prefixes: tuple[KeptPrefix, ...] = ()


class LoadFailed(Message, frozen=True, kw_only=True):
    """Inspecting or loading failed; `message` is one sentence for the user."""

    worker: str
    message: str


class Update(msgspec.Struct, frozen=True, array_like=True):
    """New token ids of one sequence; finish_reason "stop" or "length" ends it."""

    sequence: int
    tokens: tuple[int, ...]
    finish_reason: str | None = None


class Tokens(Message, frozen=True, kw_only=True):
    """What one step of a head produced."""

    updates: tuple[Update, ...]


class PrefillProgress(Message, frozen=True, kw_only=True):
    """Prompt tokens of a sequence that the pipeline has taken in."""

    sequence: int
    processed: int
    total: int


class Reused(Message, frozen=True, kw_only=True):
    """A sequence began with `num_tokens` of its prompt already in the caches."""

    sequence: int
    num_tokens: int


class SequenceFailed(Message, frozen=True, kw_only=True):
    """A sequence cannot go on; `message` is one sentence for the user."""

    sequence: int
    message: str


# --- coordinator to worker


class Welcome(Message, frozen=True, kw_only=True):
    """The worker is admitted."""

    coordinator: str


class Rejected(Message, frozen=True, kw_only=True):
    """The worker is not admitted; it ends."""

    reason: str


class InspectModel(Message, frozen=True, kw_only=True):
    """Find out how the model's architecture can be cut."""

    model_path: str
    cache_dir: str


class KvSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The kind of KV cache, a key of `workers.kv_cache.KINDS`, and for the kinds that take them its parameters.

    None is a kind's default. bits: width of quantized keys and values; key_bits and value_bits win over it. group_size:
    numbers that share one scale. max_tokens: of one sequence, prompt and answer together (static), or kept at most
    (rotating). keep: first tokens that a rotating cache never forgets.
    """

    kind: str = "dynamic"
    bits: int | None = None
    key_bits: int | None = None
    value_bits: int | None = None
    group_size: int | None = None
    max_tokens: int | None = None
    keep: int | None = None


class LoadStage(Message, frozen=True, kw_only=True):
    """Load one stage of the plan whose epoch the message carries; `stages` is the whole plan in order."""

    model_path: str
    cache_dir: str
    kv: KvSettings
    prefix_memory_bytes: int
    prefix_disk_bytes: int
    stages: tuple[StagePlan, ...]
    last_position_only: bool
    batches: bool
    prefill_chunk_tokens: int | None


class KnownPrefix(Message, frozen=True, kw_only=True):
    """For the head of a route: what every stage of it still has from an earlier life, and how many parts to keep.

    Buffers: keys and numbers of tokens as in Loaded.
    """

    route: tuple[str, ...]
    capacity: int
    snapshots: bool


class ForgetConversation(Message, frozen=True, kw_only=True):
    """A conversation was deleted: what only it had is given back."""

    conversation: str


class Generate(Message, frozen=True, kw_only=True):
    """Start a sequence on the head that receives this. Prompt ids are buffer 0 (int32).

    route: names of the workers in stage order; one name means that worker's full model. scope: sequences of different
    scopes share no prefix; conversation: whose prefix to hold on to.
    """

    sequence: int
    route: tuple[str, ...]
    cached: bool
    max_tokens: int
    end_tokens: tuple[int, ...]
    sampling: Sampling
    seed: int
    scope: str = ""
    conversation: str | None = None


class Cancel(Message, frozen=True, kw_only=True):
    """Stop computing for a sequence. Unknown sequences are ignored: it may just have ended."""

    sequence: int


class Shutdown(Message, frozen=True, kw_only=True):
    """End the process now."""


# --- worker to worker


class OpenSequence(Message, frozen=True, kw_only=True):
    """A sequence begins on a stage, before its first step.

    max_length: the most tokens that it can come to. history: the last ids before the first sampled one, which penalties
    look at. Buffer 0: keys of the parts that its cache begins with. Passed on from stage to stage, so that it stays in
    front of the sequence's steps.
    """

    sequence: int
    route: tuple[str, ...]
    cached: bool
    sampling: Sampling
    seed: int
    history: tuple[int, ...]
    max_length: int


class CloseSequence(Message, frozen=True, kw_only=True):
    """A sequence ended; its cache is freed. Passed on like OpenSequence."""

    sequence: int
    route: tuple[str, ...]


class KeepPrefix(Message, frozen=True, kw_only=True):
    """Keep parts of a running sequence's cache: spans of tokens, keys in buffer 0. Passed on like OpenSequence."""

    sequence: int
    route: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


class DropPrefix(Message, frozen=True, kw_only=True):
    """Forget the parts whose keys are in buffer 0. Passed on like OpenSequence."""

    route: tuple[str, ...]


class Row(msgspec.Struct, frozen=True, array_like=True):
    """One sequence's part in a step: `position` of its first token, and whether its last token is sampled from."""

    sequence: int
    position: int
    sample: bool


class Step(Message, frozen=True, kw_only=True):
    """One micro-batch on its way through the stages of `route`. Token ids (rows x tokens, int32) are buffer 0.

    slot: the batch whose merged cache the rows share; payload: structure of the hidden states (see workers.payload),
    its arrays in the buffers after the first.
    """

    number: int
    route: tuple[str, ...]
    slot: int
    cached: bool
    rows: tuple[Row, ...]
    num_tokens: int
    payload: Any = None


class Sampled(Message, frozen=True, kw_only=True):
    """The last stage's answer to the head: one id for each row that asked to be sampled, in row order."""

    number: int
    route: tuple[str, ...]
    tokens: tuple[int, ...]


class StepFailed(Message, frozen=True, kw_only=True):
    """A stage could not run a step; every row of it fails with `message`."""

    number: int
    route: tuple[str, ...]
    message: str


# Numbers are never reused for another meaning.
KINDS: dict[int, type[Message]] = {
    1: Join,
    2: Heartbeat,
    3: Inspected,
    4: LoadProgress,
    5: Loaded,
    6: LoadFailed,
    7: Tokens,
    8: PrefillProgress,
    9: SequenceFailed,
    10: Reused,
    20: Welcome,
    21: Rejected,
    22: InspectModel,
    23: LoadStage,
    24: Generate,
    25: Cancel,
    26: Shutdown,
    27: KnownPrefix,
    28: ForgetConversation,
    40: OpenSequence,
    41: CloseSequence,
    42: Step,
    43: Sampled,
    44: StepFailed,
    45: KeepPrefix,
    46: DropPrefix,
}
_NUMBERS = {kind: number for number, kind in KINDS.items()}


class Envelope(msgspec.Struct, frozen=True):
    """A decoded message with the epoch it was sent in and its raw buffers."""

    epoch: int
    message: Message
    buffers: tuple[Buffer, ...] = ()


def encode(epoch: int, message: Message, buffers: Sequence[Buffer] = ()) -> list[Buffer]:
    """The frames of one message. Buffers are passed through, never copied."""
    return [_PREFIX.pack(epoch, _NUMBERS[type(message)]), _header.encode(message), *buffers]


def decode(frames: Sequence[Buffer]) -> Envelope:
    """The message in `frames`.

    Raises:
        WireError: too few or too many frames, an unknown kind, a header beyond the limits or of the wrong shape.
    """
    if not 2 <= len(frames) <= MAX_BUFFERS + 2:
        raise WireError(f"a message of {len(frames)} frames")
    prefix, header, *buffers = frames
    if len(prefix) != _PREFIX.size or len(header) > MAX_HEADER_BYTES:
        raise WireError("a message with a malformed prefix or an oversized header")
    epoch, number = _PREFIX.unpack(prefix)
    kind = KINDS.get(number)
    if kind is None:
        raise WireError(f"a message of unknown kind {number}")
    try:
        fields = msgpack.unpackb(header, **_LIMITS)
        message = msgspec.convert(fields, kind)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"a {kind.__name__} message that does not decode: {error}") from error
    return Envelope(epoch, message, tuple(buffers))
