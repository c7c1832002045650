"""Anthropic's messages: POST /v1/messages, messages of blocks in, a message of blocks out.

A model thinks only where `thinking` asks for it, as there: clients that ask for nothing read the first block as text.
"""

from typing import Any

import msgspec

from cluster.api.fields import (
    Check,
    Notes,
    anything,
    check_all,
    flag,
    hint,
    mapping,
    mapping_of,
    one_of,
    only,
    strings,
    text,
)
from cluster.api.forced_tools import anthropic_choice, chosen
from cluster.api.parameters import COMMON, api_request, understood, understood_schema
from cluster.api.schemas import NOTHING, Schema, described, list_of, object_schema
from cluster.api.structured import response_format
from cluster.api.surface import AnswerFormat, ApiRequest
from cluster.api.surfaces.chat import any_tools, messages_list
from cluster.api.surfaces.message_answer import Anthropic, MessageAnswer, ThreadRefused
from cluster.api.surfaces.message_blocks import blocks_schema, message_schema, plain_text, template_messages
from cluster.serving.requests import ChatPrompt, Routed
from protocol.errors import BadRequest

_TOOL: dict[str, Check] = {
    "type": one_of("custom"),
    "name": text(1, 256),
    "description": text(0, 1 << 20),
    "input_schema": mapping,
    "strict": hint(False),
    "defer_loading": hint(False),
    "eager_input_streaming": hint(False),
    "cache_control": hint(),
}
_CHOICE: dict[str, Check] = {
    "type": anything,
    "name": anything,
    "disable_parallel_tool_use": flag,
}
_THINKING: dict[str, Check] = {
    "type": one_of("enabled", "disabled", "adaptive", "between_tools"),
    "budget_tokens": hint(),
    "display": hint("summarized"),
}
_OUTPUT: dict[str, Check] = {"effort": text(1, 32), "format": response_format}


@described(NOTHING)
def no_thread(name: str, _value: Any) -> None:
    raise ThreadRefused(
        f"{name} asks for a conversation that is kept here; leave it out and send all messages", param=name
    )


FIELDS: dict[str, Check] = {
    **{name: check for name, check in COMMON.items() if name != "stream_options"},
    "messages": described(lambda: list_of(message_schema(), minItems=1))(messages_list),
    "system": described(lambda: blocks_schema(["text"]))(anything),
    "stop_sequences": strings(16, 1024),
    "tools": described(lambda: any_tools.schema | {"items": object_schema(_TOOL, ["name"])})(any_tools),
    "tool_choice": described(anthropic_choice.schema)(mapping),
    "thinking": mapping_of(_THINKING, ["type"]),
    "output_config": mapping_of(_OUTPUT),
    "output_format": response_format,
    "thread": no_thread,
    "mcp_servers": only("tools of other servers", []),
    "service_tier": hint("auto", "standard_only"),
    "cache_control": hint(),
    "container": hint(),
    "context_management": hint(),
    "betas": hint([]),
    "speed": hint("standard"),
}


class Messages(Anthropic):
    """See the module. counting_path: where the same body is only counted."""

    path = "/v1/messages"
    counting_path: str | None = "/v1/messages/count_tokens"

    def parse(self, body: dict[str, Any], notes: Notes) -> ApiRequest:
        """See `Surface`."""
        fields = understood(body, FIELDS, notes)
        if "messages" not in fields:
            raise BadRequest("messages is missing; send a list of messages", param="messages")
        choice = fields.get("tool_choice", {"type": "auto"})
        is_single = check_all(choice, _CHOICE, notes, "tool_choice.").get("disable_parallel_tool_use", False)
        tools = chosen(anthropic_choice("tool_choice", choice), _tools(fields.get("tools", []), notes))
        wished = check_all(fields.get("output_config", {}), _OUTPUT, notes, "output_config.")
        messages = _system(fields, notes) + template_messages(fields["messages"], notes)
        prompt = ChatPrompt(
            messages, tools.tools, options=_options(wished, fields, notes), one_call=is_single, forced=tools.forced
        )
        stop = (*fields.get("stop", ()), *fields.get("stop_sequences", ()))
        request = api_request(fields | wished | {"stop": stop}, prompt, "messages", notes, tools.structure)
        if messages[-1]["role"] != "assistant":
            return request
        begun = "the assistant's last message is not continued: the answer is a new one"
        return msgspec.structs.replace(request, notes=(*request.notes, begun))

    def schema(self) -> Schema:
        """See `Surface`."""
        return understood_schema(FIELDS, ["messages"])

    def answer(self, request: ApiRequest, routed: Routed, *, model: str, created: int) -> AnswerFormat:  # noqa: ARG002
        """See `Surface`."""
        return MessageAnswer(request, routed, model=model)


def _system(fields: dict[str, Any], notes: Notes) -> tuple[dict[str, Any], ...]:
    said = plain_text("system", fields.get("system", ""), notes)
    return ({"role": "system", "content": said},) if said else ()


def _tools(tools: list[Any], notes: Notes) -> tuple[dict[str, Any], ...]:
    """Tools in OpenAI's form, in which chat templates take them."""
    return tuple(_tool(f"tools[{index}]", tool, notes) for index, tool in enumerate(tools))


def _tool(name: str, value: Any, notes: Notes) -> dict[str, Any]:
    fields = check_all(mapping(name, value), _TOOL, notes, f"{name}.")
    if "name" not in fields:
        raise BadRequest(f"{name}.name is missing", param=f"{name}.name")
    schema = fields.get("input_schema", {"type": "object", "properties": {}})
    described = {"description": fields["description"]} if "description" in fields else {}
    return {"type": "function", "function": {"name": fields["name"], **described, "parameters": schema}}


def _options(wished: dict[str, Any], fields: dict[str, Any], notes: Notes) -> dict[str, Any]:
    """What the chat template is told of thinking."""
    thinking = check_all(fields.get("thinking", {"type": "disabled"}), _THINKING, notes, "thinking.")
    if "type" not in thinking:
        raise BadRequest("thinking.type is missing", param="thinking.type")
    effort = {"reasoning_effort": wished["effort"]} if "effort" in wished else {}
    return {"enable_thinking": thinking["type"] != "disabled"} | effort
