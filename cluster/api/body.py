"""Reading a request's body: bounded in size and time, then strict JSON, then whatever its path makes of it.

A body over the limit is read to its end without being kept, because a client that is still sending does not see an
answer that comes before it is done. A large one is looked at off the event loop, one at a time, so that nobody's stream
waits for it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from protocol.errors import ApiError, BadRequest, TooLarge

BODY_LIMIT_BYTES = 16 * 2**20
DISCARD_LIMIT_BYTES = 256 * 2**20
BODY_TIMEOUT_S = 60.0
# What is larger takes more than a moment.
LARGE_BYTES = 256 * 1024
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
    return await asyncio.get_running_loop().run_in_executor(_large, lambda: parse(decode_object(data)))


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
    error = TooLarge(f"the body is larger than {BODY_LIMIT_BYTES // 2**20} MB; send a shorter prompt")
    error.code = "request_too_large"
    return error
