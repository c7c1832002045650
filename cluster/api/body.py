"""Reading a request's body: bounded in size and time, then strict JSON, then whatever its path makes of it.

A body over the limit is read to its end without being kept, because a client that is still sending does not see an
answer that comes before it is done. A large one is looked at off the event loop, one at a time, so that nobody's stream
waits for it; and counted before, since the decoder lets nobody else run until every list and object is made.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
import numpy as np
from starlette.requests import Request

from protocol.errors import ApiError, BadRequest, TooLarge

BODY_LIMIT_BYTES = 16 * 2**20
DISCARD_LIMIT_BYTES = 256 * 2**20
BODY_TIMEOUT_S = 60.0
# What is larger takes more than a moment.
LARGE_BYTES = 256 * 1024
# Of a large body: lists and objects, and names within objects. What is neither (text, token ids) costs little.
MAX_CONTAINERS = 100_000
MAX_NAMES = 200_000
_large = ThreadPoolExecutor(max_workers=1, thread_name_prefix="large-bodies")

_Parsed = TypeVar("_Parsed")


async def parsed_body(request: Request, parse: Callable[[dict[str, Any]], _Parsed]) -> _Parsed:
    """What `parse` makes of the body, a JSON object.

    Raises:
        BadRequest, TooLarge: by itself, or by `parse`.
        RecursionError: it is nested too deeply.
        ClientDisconnect: the client went away.
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            data = await _read(request)
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {BODY_TIMEOUT_S:.0f} seconds") from None
    if len(data) <= LARGE_BYTES:
        return parse(decode_object(data))
    return await asyncio.get_running_loop().run_in_executor(_large, lambda: parse(_decode_large(data)))


def _decode_large(data: bytearray) -> dict[str, Any]:
    num_containers, num_names = measured(data)
    if num_containers > MAX_CONTAINERS or num_names > MAX_NAMES:
        raise BadRequest(
            f"the body holds {num_containers:,} lists and objects and {num_names:,} names; "
            f"send at most {MAX_CONTAINERS:,} and {MAX_NAMES:,}"
        )
    return decode_object(data)


def measured(data: bytes | bytearray) -> tuple[int, int]:
    """How many lists and objects, and how many names within objects, JSON bytes hold. Others run meanwhile.

    Of bytes that are no JSON it says something.
    """
    # Escaped characters go, so that each quote that is left begins or ends a string.
    characters = np.frombuffer(data.replace(b"\\\\", b"  ").replace(b'\\"', b"  "), np.uint8)
    in_strings = np.bitwise_xor.accumulate(characters == ord('"'))
    outside = characters[~in_strings]
    containers = np.count_nonzero((outside == ord("[")) | (outside == ord("{")))
    return int(containers), int(np.count_nonzero(outside == ord(":")))


def decode_object(data: bytes | bytearray) -> dict[str, Any]:
    """JSON bytes as an object (of repeated names the last counts). Raises BadRequest and RecursionError."""
    try:
        value = msgspec.json.decode(data)
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not valid UTF-8: {error.reason}") from error
    except msgspec.DecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    if type(value) is not dict:
        raise BadRequest("the body must be a JSON object")
    return value


async def _read(request: Request) -> bytearray:
    declared = _declared_length(request)
    too_large = declared > BODY_LIMIT_BYTES
    if declared > DISCARD_LIMIT_BYTES or (too_large and request.headers.get("expect", "").lower() == "100-continue"):
        raise _body_too_large()
    data, discarded = bytearray(), 0
    async for part in request.stream():
        if not too_large and len(data) + len(part) <= BODY_LIMIT_BYTES:
            data += part
            continue
        too_large = True
        discarded += len(part)
        data.clear()
        if discarded > DISCARD_LIMIT_BYTES:
            break
    if too_large:
        raise _body_too_large()
    return data


def _declared_length(request: Request) -> int:
    value = request.headers.get("content-length", "0")
    return int(value) if value.isdecimal() else 0


def _body_too_large() -> ApiError:
    return TooLarge(f"the body is larger than {BODY_LIMIT_BYTES // 2**20} MB; send a shorter prompt")
