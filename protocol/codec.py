"""The bytes of every message, and the one place where bytes become a typed value.

A message on the wire is `[prefix | header | raw buffer ...]`: the prefix is the epoch (unsigned 64 bits, big endian), the
kind (16 bits), the sender's place among the plan's workers (16 bits) and its number on that link (32 bits; 0 for what is
not numbered); the header is msgpack of the struct's fields; tensors travel only as raw buffers. A frame of exactly
MAX_FRAME_BYTES goes on in the next one, so that no receiver need take larger ones. A message of another epoch than the
receiver's is dropped by the receiver. Nothing is ever unpickled. Whatever does not decode within the limits raises
`WireError` and nothing else.
"""

import struct
from collections.abc import Sequence
from typing import Any

import msgpack
import msgspec

from protocol.errors import WireError
from protocol.messages import (
    Beat,
    Cancel,
    CloseSequence,
    ComputeFigures,
    CopyArrived,
    CopyPrefix,
    DropPrefix,
    Embedded,
    FiguresComputed,
    ForgetConversation,
    Generate,
    HandedOver,
    HandOver,
    Heartbeat,
    Inspected,
    InspectModel,
    Join,
    KeepPrefix,
    KnownPrefix,
    Leave,
    LinkLost,
    LinksMeasured,
    ListModels,
    Loaded,
    LoadFailed,
    LoadProgress,
    LoadStage,
    Message,
    ModelsListed,
    OpenSequence,
    Pooled,
    PrefillProgress,
    Prepared,
    PrepareStage,
    PromptLogprobs,
    ReadingFailed,
    ReadPrompt,
    Rejected,
    Reused,
    Sampled,
    SequenceFailed,
    Shutdown,
    Step,
    StepFailed,
    StepOverdue,
    StepsRecorded,
    StopReading,
    Tokens,
    Welcome,
)
from protocol.values import Buffer

PROTOCOL = 14
MAX_HEADER_BYTES = 8 << 20  # a bias for every id of a vocabulary of half a million
MAX_FRAME_BYTES = 32 << 20
MAX_BUFFERS = 4096  # as frames
MAX_NUMBER = (1 << 32) - 1
_LIMITS: dict[str, Any] = {
    "strict_map_key": False,
    "max_str_len": 1 << 20,
    "max_bin_len": 0,
    "max_array_len": 1 << 20,
    "max_map_len": 1 << 20,
    "max_ext_len": 0,
}
_PREFIX = struct.Struct(">QHHI")
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
    11: Prepared,
    12: LinkLost,
    13: StepOverdue,
    14: Leave,
    15: LinksMeasured,
    16: ModelsListed,
    17: FiguresComputed,
    18: PromptLogprobs,
    19: Embedded,
    20: Welcome,
    21: Rejected,
    22: InspectModel,
    23: LoadStage,
    24: Generate,
    25: Cancel,
    26: Shutdown,
    27: KnownPrefix,
    28: ForgetConversation,
    29: Beat,
    30: PrepareStage,
    31: ListModels,
    32: ComputeFigures,
    33: StepsRecorded,
    40: OpenSequence,
    41: CloseSequence,
    42: Step,
    43: Sampled,
    44: StepFailed,
    45: KeepPrefix,
    46: DropPrefix,
    47: CopyPrefix,
    48: CopyArrived,
    49: ReadPrompt,
    50: StopReading,
    51: HandOver,
    52: HandedOver,
    53: ReadingFailed,
    54: Pooled,
}
_NUMBERS = {kind: number for number, kind in KINDS.items()}


class Envelope(msgspec.Struct, frozen=True):
    """A decoded message with the epoch it was sent in and its raw buffers.

    number: of the message on its link from the `sender`-th worker of the plan, from 1; 0 where links do not count. key:
    whose it is, as the transport found it (Z85 text); origin: the IP address that it came from; both empty for what was said
    within the process.
    """

    epoch: int
    message: Message
    buffers: tuple[Buffer, ...] = ()
    sender: int = 0
    number: int = 0
    key: str = ""
    origin: str = ""


def encode(
    epoch: int, message: Message, buffers: Sequence[Buffer] = (), *, sender: int = 0, number: int = 0
) -> list[Buffer]:
    """The frames of one message. Buffers are passed through, large ones in pieces, never copied.

    Raises:
        WireError: it is larger than `decode` takes, so that whoever waits for its answer need not wait for ever.
    """
    header = _header.encode(message)
    if any(len(buffer) >= MAX_FRAME_BYTES for buffer in buffers):
        buffers = [piece for buffer in buffers for piece in _pieces(buffer)]
    if len(header) > MAX_HEADER_BYTES or len(buffers) > MAX_BUFFERS:
        raise WireError(
            f"a {type(message).__name__} of {len(header)} bytes and {len(buffers)} buffers is too large to send"
        )
    return [_PREFIX.pack(epoch, _NUMBERS[type(message)], sender, number), header, *buffers]


def _pieces(buffer: Buffer) -> list[Buffer]:
    """A buffer as frames; the last one, perhaps an empty one, is smaller than the others."""
    view = memoryview(buffer)
    return [view[start : start + MAX_FRAME_BYTES] for start in range(0, len(view) + 1, MAX_FRAME_BYTES)]


def _joined(frames: Sequence[Buffer]) -> list[Buffer]:
    """The buffers of `_pieces`, one behind the other."""
    buffers: list[Buffer] = []
    pieces: list[Buffer] = []
    for frame in frames:
        pieces.append(frame)
        if len(frame) != MAX_FRAME_BYTES:
            buffers.append(b"".join(pieces))
            pieces = []
    if pieces:
        raise WireError("a buffer whose last piece is missing")
    return buffers


def decode(frames: Sequence[Buffer], *, key: str = "", origin: str = "") -> Envelope:
    """The message in `frames` from the owner of `key`, which came from the IP address `origin`.

    Raises:
        WireError: too few or too many frames, an unknown kind, a header beyond the limits or of the wrong shape.
    """
    if not 2 <= len(frames) <= MAX_BUFFERS + 2:
        raise WireError(f"a message of {len(frames)} frames")
    prefix, header, *buffers = frames
    if len(prefix) != _PREFIX.size or len(header) > MAX_HEADER_BYTES:
        raise WireError("a message with a malformed prefix or an oversized header")
    epoch, kind_number, sender, number = _PREFIX.unpack(prefix)
    kind = KINDS.get(kind_number)
    if kind is None:
        raise WireError(f"a message of unknown kind {kind_number}")
    try:
        fields = msgpack.unpackb(header, **_LIMITS)
        message = msgspec.convert(fields, kind)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"a {kind.__name__} message that does not decode: {error}") from error
    if any(len(buffer) == MAX_FRAME_BYTES for buffer in buffers):
        buffers = _joined(buffers)
    return Envelope(epoch, message, tuple(buffers), sender, number, key, origin)
