"""Anthropic's messages and their blocks, as the messages that a chat template takes.

Text of one message stays together and in order; a call of a tool becomes one of the assistant's, a result a message of its own.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import Any, Final

from cluster.api.fields import Check, Notes, any_text, anything, check_all, hint, mapping, one_of, refuse, text
from cluster.api.schemas import Schema, any_of, described, list_of, object_schema
from protocol.errors import BadRequest

_KINDS: Final = {
    "user": ("text", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    "system": ("text",),
}

Block = tuple[str, dict[str, Any]]


_MESSAGE: dict[str, Check] = {
    "role": one_of(*_KINDS),
    "content": described(lambda: blocks_schema(_KINDS["user"]))(anything),
}
_FIELDS: dict[str, dict[str, Check]] = {
    "text": {"type": anything, "text": any_text},
    "tool_use": {"type": anything, "id": text(0, 256), "name": text(1, 256), "input": mapping},
    "tool_result": {
        "type": anything,
        "tool_use_id": text(0, 256),
        "content": described(lambda: blocks_schema(("text",)))(anything),
        "is_error": hint(False),
    },
}
_NEEDED = {"text": ["text"], "tool_use": ["name"], "tool_result": []}


def message_schema() -> Schema:
    """A message of any of the roles, with the blocks that each may have."""
    needed = list(_MESSAGE)
    return any_of(
        *(
            object_schema({"role": one_of(role), "content": described(blocks_schema(kinds))(anything)}, needed)
            for role, kinds in _KINDS.items()
        )
    )


def blocks_schema(kinds: Iterable[str]) -> Schema:
    """A string, or a list of blocks of these kinds."""
    return any_of({"type": "string"}, list_of(any_of(*map(_block_schema, kinds))))


def _block_schema(kind: str) -> Schema:
    checks: dict[str, Check] = {**_FIELDS.get(kind, {}), "type": one_of(kind)}
    return object_schema(checks, ["type", *_NEEDED.get(kind, [])])


def template_messages(messages: list[Any], notes: Notes) -> tuple[dict[str, Any], ...]:
    """What a chat template takes for a list of Anthropic's messages. Raises BadRequest naming the place."""
    turns = (_turn(f"messages[{index}]", message, notes) for index, message in enumerate(messages))
    return tuple(message for turn in turns for message in turn)


def plain_text(name: str, content: Any, notes: Notes) -> str:
    """A string, or the text of a list of text blocks."""
    return _said(_blocks(name, content, ("text",), notes))


def _turn(name: str, value: Any, notes: Notes) -> list[dict[str, Any]]:
    fields = check_all(mapping(name, value), _MESSAGE, notes, f"{name}.")
    for field in _MESSAGE:
        if field not in fields:
            raise BadRequest(f"{name}.{field} is missing", param=f"{name}.{field}")
    role = fields["role"]
    blocks = _blocks(f"{name}.content", fields["content"], _KINDS[role], notes)
    if role == "assistant":
        calls = [_call(block) for kind, block in blocks if kind == "tool_use"]
        return [{"role": role, "content": _said(blocks)} | ({"tool_calls": calls} if calls else {})]
    turn: list[dict[str, Any]] = []
    for are_results, run in groupby(blocks, lambda block: block[0] == "tool_result"):
        alike = list(run)
        turn += map(_result, alike) if are_results else [{"role": role, "content": _said(alike)}]
    return turn or [{"role": role, "content": ""}]


def _blocks(name: str, content: Any, kinds: tuple[str, ...], notes: Notes) -> list[Block]:
    """Checked blocks, each with its kind."""
    if type(content) is str:
        return [("text", {"text": content})]
    if type(content) is not list:
        raise refuse(name, "a string or a list of blocks", content)
    return [_block(f"{name}[{index}]", item, kinds, notes) for index, item in enumerate(content)]


def _block(name: str, value: Any, kinds: tuple[str, ...], notes: Notes) -> Block:
    kind = mapping(name, value).get("type")
    if kind not in kinds:
        allowed = " or ".join(f'"{item}"' for item in kinds)
        raise BadRequest(
            f"{name}.type must be {allowed} here: images, documents and what other servers' tools find are not supported",
            param=f"{name}.type",
        )
    if kind not in _FIELDS:  # a thought of before, which the template is not told
        notes.without_effect(kind, (), f"{name}.")
        return kind, {}
    fields = check_all(value, _FIELDS[kind], notes, f"{name}.")
    for needed in _NEEDED[kind]:
        if needed not in fields:
            raise BadRequest(f"{name}.{needed} is missing", param=f"{name}.{needed}")
    if kind == "tool_result":
        fields["content"] = plain_text(f"{name}.content", fields.get("content", ""), notes)
    return kind, fields


def _said(blocks: list[Block]) -> str:
    return "".join(block["text"] for kind, block in blocks if kind == "text")


def _call(block: dict[str, Any]) -> dict[str, Any]:
    called = {"type": "function", "function": {"name": block["name"], "arguments": block.get("input", {})}}
    return called | ({"id": block["id"]} if block.get("id") else {})


def _result(block: Block) -> dict[str, Any]:
    _, fields = block
    of = {"tool_call_id": fields["tool_use_id"]} if fields.get("tool_use_id") else {}
    return {"role": "tool", "content": fields["content"]} | of
