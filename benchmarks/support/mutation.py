"""Messages and requests that are a little wrong, each in another way: what fuzzing sends. Draws from a `random.Random` alone."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from protocol import codec
from protocol.messages import Message
from protocol.values import Buffer

# Values that somebody may forget to think of.
_ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**64 - 1,
    -(2**63),
    0.5,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "worker-9",
    "x" * 5000,
    "\ud7ff\u0000",
    [],
    {},
    [None] * 1000,
)
_EPOCHS = (0, 1, 2**32, 2**64 - 1)
_NEST = 60
# How often a question has a frame that is too large, which ends its connection and loses what is behind it.
_ENDS_IT = 0.004


def _nested() -> Any:
    value: Any = []
    for _ in range(_NEST):
        value = [value]
    return value


def odd_value(generator: random.Random) -> Any:
    """One of them."""
    return _nested() if generator.random() < 0.05 else generator.choice(_ODD)


def changed(value: Any, generator: random.Random) -> Any:
    """A copy of a JSON-like value with something in it replaced, left out or added."""
    if isinstance(value, dict) and value and generator.random() < 0.9:
        key = generator.choice(list(value))
        if generator.random() < 0.15:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: changed(value[key], generator)}
    if isinstance(value, list) and value and generator.random() < 0.7:
        index = generator.randrange(len(value))
        if generator.random() < 0.2:
            return value[:index] + value[index + 1 :]
        return [*value[:index], changed(value[index], generator), *value[index + 1 :]]
    return odd_value(generator)


def flipped(content: bytes, generator: random.Random) -> bytes:
    """Some bytes replaced, cut off, or put in."""
    raw = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(raw) + 1)
        draw = generator.random()
        if draw < 0.5 and at < len(raw):
            raw[at] = generator.randrange(256)
        elif draw < 0.7:
            del raw[at : at + generator.randint(1, 8)]
        elif draw < 0.9:
            raw[at:at] = generator.randbytes(generator.randint(1, 8))
        else:
            del raw[at:]
    return bytes(raw)


def mutated_frames(
    message: Message, buffers: Sequence[Buffer], epoch: int, sender: int, generator: random.Random
) -> list[bytes]:
    """The frames of a message with at least one thing wrong in them. A wrong number on its sender's own link is none: with
    it a sender says that this link lost something, which it may.
    """
    # What is not said of its link stays as it is now and then, so that what lies behind the prefix is looked at.
    said_epoch = generator.choice((epoch, epoch, epoch, *_EPOCHS))
    said_sender = generator.choice((sender, sender, sender, 0, 1, 0xFFFF))
    is_own = (said_epoch, said_sender) == (epoch, sender)
    number = 0 if is_own else generator.choice((0, 0, 0, 1, 2**32 - 1))
    prefix, header, *rest = codec.encode(said_epoch, message, list(buffers), sender=said_sender, number=number)
    frames = [bytes(prefix), bytes(header), *map(bytes, rest)]
    wrong: tuple[Callable[[], object], ...] = (
        lambda: _change_field(frames, generator),
        lambda: _change_field(frames, generator),
        lambda: _flip(frames, generator.randrange(min(is_own, len(frames) - 1), len(frames)), generator),
        lambda: frames.append(generator.randbytes(generator.choice((0, 1, 16, 1 << 16)))),
        frames.pop,
    )
    for _ in range(generator.randint(1, 3)):
        if frames:
            generator.choice(wrong)()
    return frames or [b""]


def mutated_question(asked: bytes, generator: random.Random) -> list[bytes]:
    """The frames of a question, a number and what is asked, with at least one thing wrong in them."""
    frames = [generator.randbytes(8), asked]
    wrong: tuple[Callable[[], object], ...] = (
        lambda: _change_field(frames, generator),
        lambda: _change_field(frames, generator),
        lambda: _flip(frames, generator.randrange(2), generator),
        lambda: frames.append(generator.randbytes(generator.choice((0, 1, 1 << 12)))),
        frames.pop,
    )
    if generator.random() < _ENDS_IT:
        frames.append(generator.randbytes(1 << 16))
    generator.choice(wrong)()
    return frames


def _change_field(frames: list[bytes], generator: random.Random) -> None:
    if len(frames) > 1:
        try:
            frames[1] = msgspec.msgpack.encode(changed(msgspec.msgpack.decode(frames[1]), generator))
        except (msgspec.DecodeError, OverflowError, UnicodeEncodeError, ValueError):  # wrong already
            _flip(frames, 1, generator)


def _flip(frames: list[bytes], index: int, generator: random.Random) -> None:
    frames[index] = flipped(frames[index], generator)


_HEADERS = (
    b"Host: evil.example",
    b"Host: localhost",
    b"Content-Length: 18446744073709551616",
    b"Content-Length: -1",
    b"Transfer-Encoding: chunked",
    b"Expect: 100-continue",
    b"Origin: https://evil.example",
    b"Authorization: Bearer \xff\xfe",
    b"X: " + b"y" * 70_000,
    b"Connection: upgrade",
    b": nothing",
    b"no colon",
)


def mutated_request(path: str, body: Any, generator: random.Random) -> bytes:
    """An HTTP request with at least one thing wrong in its body, its headers or its bytes. body: None for a GET."""
    content = b"" if body is None else msgspec.json.encode(body)
    draw = generator.random()
    if body is not None and draw < 0.6:
        content = _as_json(changed(body, generator), content)
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1".encode(), b"Host: localhost"]
    lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(content)]
    if draw >= 0.6 and generator.random() < 0.6:
        at = generator.randrange(1, len(lines))
        lines[at : at + generator.randint(0, 1)] = [generator.choice(_HEADERS)]
    request = b"\r\n".join([*lines, b"", b""]) + content
    return flipped(request, generator) if draw >= 0.75 else request


def _as_json(value: Any, otherwise: bytes) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (ValueError, OverflowError, UnicodeEncodeError):
        return otherwise[:-1]
