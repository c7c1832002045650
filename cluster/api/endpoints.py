"""What every endpoint is: a request in, a response out, most of them JSON."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cluster.api.events import as_json

Endpoint = Callable[[Request], Awaitable[Response]]


def json_answer(data: Any, status: int = 200) -> Response:
    """Structs and what JSON has of itself."""
    return Response(as_json(data), status, media_type="application/json")
