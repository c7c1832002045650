"""The bytes of every message, and the one place where bytes become a typed value.

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

from protocol.errors import WireError
from protocol.messages import (
    Cancel,
    CloseSequence,
    DropPrefix,
    ForgetConversation,
    Generate,
    Heartbeat,
    Inspected,
    InspectModel,
    Join,
    KeepPrefix,
    KnownPrefix,
    Loaded,
    LoadFailed,
    LoadProgress,
    LoadStage,
    Message,
    OpenSequence,
    PrefillProgress,
    Rejected,
    Reused,
    Sampled,
    SequenceFailed,
    Shutdown,
    Step,
    StepFailed,
    Tokens,
    Welcome,
)
from protocol.values import Buffer

PROTOCOL = 2
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
