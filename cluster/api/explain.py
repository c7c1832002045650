"""The body of /v1/explain: that of a chat completion or of a completion, told apart by `prompt`."""

from typing import Any

from cluster.api.fields import Notes
from cluster.api.surface import ApiRequest
from cluster.api.surfaces.chat import Chat
from cluster.api.surfaces.completions import Completions
from protocol.errors import BadRequest


def parse_explain(body: dict[str, Any], notes: Notes) -> ApiRequest:
    """The request to explain. Raises BadRequest naming the field."""
    raw = body.get("prompt") is not None
    if raw and body.get("messages") is not None:
        raise BadRequest("send either messages or prompt, not both", param="prompt")
    return (Completions() if raw else Chat()).parse(body, notes)
