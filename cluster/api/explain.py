"""The body of /v1/explain: that of a chat completion or of a completion, told apart by `prompt`."""

from collections.abc import Callable
from typing import Any

import msgspec

from cluster.api.choices import generations
from cluster.api.fields import Notes, only
from cluster.api.parameters import understood_schema
from cluster.api.schemas import Schema
from cluster.api.surface import ApiRequest
from cluster.api.surfaces import chat, completions
from cluster.api.surfaces.chat import Chat
from cluster.api.surfaces.completions import Completions, completion_schema, one_prompt
from protocol.errors import BadRequest

# What a body may be, by names.
EXPLAIN_BODIES: dict[str, Callable[[], Schema]] = {
    "ExplainChatRequest": lambda: understood_schema({**chat.FIELDS, "prompt": only("one of both")}, ["messages"]),
    "ExplainCompletionRequest": lambda: completion_schema(
        {**completions.FIELDS, "prompt": one_prompt, "messages": only("one of both")}, ["prompt"]
    ),
}


def parse_explain(body: dict[str, Any], notes: Notes) -> ApiRequest:
    """The request to explain. Raises BadRequest naming the field."""
    raw = body.get("prompt") is not None
    if raw and body.get("messages") is not None:
        raise BadRequest("send either messages or prompt, not both", param="prompt")
    parsed = (Completions() if raw else Chat()).parse(body, notes)
    if parsed.choices is not None and len(parsed.choices.prompts) > 1:
        raise BadRequest(
            f"prompt holds {len(parsed.choices.prompts)} prompts; send one in each request", param="prompt"
        )
    return msgspec.structs.replace(parsed, generation=generations(parsed)[0])
