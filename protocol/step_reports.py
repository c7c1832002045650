"""What a worker says of the steps that it ran: JSON, made once there, which passes to whoever looks as it is.

Owns the shape of it, and what is held to be one. Knows nothing of who says it or who looks.
"""

from typing import Annotated

import msgspec

from protocol.errors import WireError
from protocol.values import Buffer, Natural

# More than any worker says at once.
MOST_BYTES = 4 << 20
_Text = Annotated[str, msgspec.Meta(max_length=64)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e11)]


class StepRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step on one worker. n: its number on its route in the epoch; at: when it began, Unix seconds on the worker's clock; s: how
    many seconds it took; tokens: of all its rows; requests: of whom they are; bytes: of what it passed on to the next worker, None
    where none follows.
    """

    n: Natural
    epoch: Natural
    route: str
    kind: _Text
    at: _Seconds
    s: _Seconds
    tokens: Natural
    requests: tuple[_Text, ...]
    bytes: Natural | None = None


class StepReport(msgspec.Struct, frozen=True):
    """Steps of one worker, in the order in which they ended."""

    worker: str
    steps: tuple[StepRecord, ...]


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(StepReport)


def encode_report(report: StepReport) -> bytes:
    """One line of JSON."""
    return _encoder.encode(report)


def decode_report(said: Buffer) -> StepReport:
    """The report in one line of JSON. Raises WireError for what is none, or too long."""
    if len(said) > MOST_BYTES or b"\n" in (line := bytes(said)) or b"\r" in line:
        raise WireError("a report of steps that is no line of JSON")
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"a report of steps that is none: {error}") from error
