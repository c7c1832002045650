"""The endpoints of responses that were answered before: read one, list what it was asked with, forget it."""

from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from cluster.api.answered import KeptAnswer, Shelf
from cluster.api.endpoints import json_answer
from cluster.api.fields import integer, one_of, only
from cluster.api.schemas import Schema
from protocol.errors import NotFound

_STREAM = only("the events of a response that was answered", "false")
_LIMIT = integer(1, 100)
_ORDER = one_of("asc", "desc")
# Of queries, as they are described: all of a query is text, and a number there is one.
READING_PARAMETERS: dict[str, Schema] = {"stream": _STREAM.schema}
PAGE_PARAMETERS: dict[str, Schema] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 100},
    "order": _ORDER.schema,
    "after": {"type": "string"},
}


class KeptResponses:
    """Each endpoint a plain function of its request. shelf: what is kept for who asks."""

    def __init__(self, shelf: Callable[[Request], Shelf]) -> None:
        self._shelf = shelf

    async def get(self, request: Request) -> Response:
        """The response object. Its events are not kept."""
        _STREAM("stream", request.query_params.get("stream", "false"))
        return json_answer(msgspec.Raw(self._found(request).answer))

    async def forget(self, request: Request) -> Response:
        response_id = request.path_params["response_id"]
        if not self._shelf(request).forget(response_id):
            raise _missing(response_id)
        return json_answer({"id": response_id, "object": "response", "deleted": True})

    async def input_items(self, request: Request) -> Response:
        """The newest first, in pages: `limit`, `order` and `after` say which."""
        asked = request.query_params
        limit = _LIMIT("limit", asked.get("limit", "20"))
        order = _ORDER("order", asked.get("order", "desc"))
        items = self._found(request).inputs
        ids = list(items) if order == "asc" else list(items)[::-1]
        after = asked.get("after")
        if after is not None and after not in items:
            raise NotFound("after is the id of no item of this response", param="after")
        rest = ids if after is None else ids[ids.index(after) + 1 :]
        page = rest[:limit]
        return json_answer(
            {
                "object": "list",
                "first_id": page[0] if page else None,
                "last_id": page[-1] if page else None,
                "has_more": len(rest) > limit,
                "data": [msgspec.Raw(items[item_id]) for item_id in page],
            }
        )

    def _found(self, request: Request) -> KeptAnswer:
        response_id = request.path_params["response_id"]
        kept = self._shelf(request).find(response_id)
        if kept is None:
            raise _missing(response_id)
        return kept


def _missing(response_id: str) -> NotFound:
    return NotFound(f"the response {response_id[:200]!r} is not kept here; it is unknown, or was forgotten", param="id")
