"""The items that a response is asked with: checked, given the form in which they are kept, and made messages of.

An item is a message, a call of a function, what a function gave, or what was thought. Those that are referred to were
kept before.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from cluster.api.fields import (
    Check,
    Notes,
    any_text,
    anything,
    check_all,
    hint,
    mapping,
    one_of,
    only,
    refuse,
    text,
)
from cluster.api.schemas import Schema, any_of, described, list_of, object_schema
from cluster.api.surfaces.chat import ROLES, any_tools, content_schema, content_text, earlier_calls
from protocol.errors import BadRequest, NotFound

Item = dict[str, Any]
Message = dict[str, Any]
# Gives an item that was kept, by its id.
Find = Callable[[str], bytes | None]

_MOST_CHARACTERS = 2**24
_MOST_ID_CHARACTERS = 256


_COMMON: dict[str, Check] = {"type": anything, "id": anything, "status": hint("completed")}
_MESSAGE: dict[str, Check] = {
    **_COMMON,
    "role": one_of("user", "assistant", "system", "developer"),
    "content": described(content_schema)(anything),
    "phase": hint(),
}
_CALL: dict[str, Check] = {
    **_COMMON,
    "call_id": text(1, _MOST_ID_CHARACTERS),
    "name": text(1, 256),
    "arguments": text(0, _MOST_CHARACTERS),
}
_OUTPUT: dict[str, Check] = {
    **_COMMON,
    "call_id": text(1, _MOST_ID_CHARACTERS),
    "output": described(content_schema)(anything),
}
_NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name"),
    "function_call_output": ("call_id", "output"),
}
_TOOL: dict[str, Check] = {
    "type": one_of("function"),
    "name": text(1, 256),
    "description": text(0, _MOST_CHARACTERS),
    "parameters": mapping,
    # It asks for arguments that the parameters' schema allows, whatever the model would say.
    "strict": hint(False),
}


def input_schema() -> Schema:
    """A text, or items of which at least one is to be answered."""
    items = list_of(any_of(*_item_schemas()), minItems=1, contains={"not": _of_kind("reasoning")})
    return any_of({"type": "string"}, items)


def _item_schemas() -> list[Schema]:
    return [
        object_schema({**_MESSAGE, "type": one_of("message")}, _NEEDED["message"]),
        object_schema({**_CALL, "type": one_of("function_call")}, ["type", *_NEEDED["function_call"]]),
        object_schema({**_OUTPUT, "type": one_of("function_call_output")}, ["type", *_NEEDED["function_call_output"]]),
        object_schema({"type": one_of("item_reference"), "id": any_text, "role": only("a message")}, ["id"]),
        _of_kind("reasoning"),
    ]


def _of_kind(kind: str) -> Schema:
    return object_schema({"type": one_of(kind)}, ["type"])


@described(lambda: any_tools.schema | {"items": any_of(object_schema(_TOOL, ["name"]), _other_tool_schema())})
def tools_of_any_kind(name: str, value: Any) -> list[Any]:
    """Functions are looked at elsewhere; other tools stand for nothing here."""
    return any_tools(name, value)


def _other_tool_schema() -> Schema:
    kind = {"type": "string", "not": {"const": "function"}}
    return {"type": "object", "properties": {"type": kind}, "required": ["type"]}


def items_of(name: str, value: Any, notes: Notes, find: Find) -> list[Item]:
    """The items of a request's input, a text or a list. Raises BadRequest naming the place."""
    if type(value) is str:
        value = [{"role": "user", "content": value}]
    if type(value) is not list or not value:
        raise refuse(name, "a string or a list of at least one item", value)
    made = (
        _item(f"{name}[{index}]", mapping(f"{name}[{index}]", item), notes, find) for index, item in enumerate(value)
    )
    return [item for item in made if item is not None]


def by_id(before: Mapping[str, bytes], items: Iterable[Item]) -> dict[str, bytes]:
    """Items as they are kept, after those `before`; one whose id is another's already gets one of its own."""
    kept = dict(before)
    for item in items:
        if item["id"] in kept:
            item["id"] = new_id(item["id"].partition("_")[0])
        kept[item["id"]] = msgspec.json.encode(item)
    return kept


def new_id(kind: str) -> str:
    """kind: what it is the id of, in a few letters."""
    return f"{kind}_{secrets.token_hex(16)}"


def _item(name: str, item: Item, notes: Notes, find: Find) -> Item | None:
    """None for what changes nothing."""
    kind = item.get("type")
    if kind is None:
        kind = "message" if item.get("role") is not None else "item_reference"
    match kind:
        case "message":
            return _message(name, item, notes)
        case "function_call":
            called = _checked(name, item, _CALL, notes, _NEEDED[kind])
            return {"arguments": "", **called, "id": _id(item, "fc"), "type": kind, "status": "completed"}
        case "function_call_output":
            given = _checked(name, item, _OUTPUT, notes, _NEEDED[kind])
            output = content_text(f"{name}.output", given["output"], notes)
            return {**given, "output": output, "id": _id(item, "fco"), "type": kind, "status": "completed"}
        case "item_reference":
            return _referred(name, item.get("id"), find)
        case "reasoning":
            notes.without_effect("reasoning", (), f"{name}.")
            return None
    known = "message, function_call, function_call_output, reasoning or item_reference"
    raise refuse(f"{name}.type", known, kind)


def _message(name: str, item: Item, notes: Notes) -> Item:
    role = _checked(name, item, _MESSAGE, notes, _NEEDED["message"])["role"]
    said = content_text(f"{name}.content", item["content"], notes)
    part = output_text(said) if role == "assistant" else {"type": "input_text", "text": said}
    return {"id": _id(item, "msg"), "type": "message", "status": "completed", "role": role, "content": [part]}


def output_text(said: str) -> dict[str, Any]:
    """The part of a message that the model says."""
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": []}


def _checked(name: str, item: Item, checks: dict[str, Check], notes: Notes, needed: tuple[str, ...]) -> Item:
    fields = check_all(item, checks, notes, f"{name}.")
    for field in needed:
        if field not in fields:
            raise BadRequest(f"{name}.{field} is missing", param=f"{name}.{field}")
    return fields


def _id(item: Item, kind: str) -> str:
    """Its own, where it has one."""
    given = item.get("id")
    return given if type(given) is str and 0 < len(given) <= _MOST_ID_CHARACTERS else new_id(kind)


def _referred(name: str, item_id: Any, find: Find) -> Item | None:
    if type(item_id) is not str:
        raise refuse(f"{name}.id", "the id of an item", item_id)
    kept = find(item_id)
    if kept is None:
        raise NotFound(f"{name}.id is the id of no item that is kept here; send the item itself", param=f"{name}.id")
    return decoded(kept)


def decoded(kept: bytes) -> Item:
    item: Item = msgspec.json.decode(kept)
    return item


def messages_of(instructions: str | None, items: Iterable[Item]) -> tuple[Message, ...]:
    """For the chat template: with what one turn of the model says and calls in one message, and what stands in front for the
    system in one, since many templates know but one.
    """
    messages: list[Message] = [] if instructions is None else [{"role": "system", "content": instructions}]
    for item in items:
        match item["type"]:
            case "message":
                _add_said(messages, ROLES[item["role"]], "".join(part["text"] for part in item["content"]))
            case "function_call":
                _add_call(messages, item)
            case "function_call_output":
                messages.append({"role": "tool", "content": item["output"], "tool_call_id": item["call_id"]})
    return tuple(messages)


def _add_said(messages: list[Message], role: str, said: str) -> None:
    last = messages[-1] if messages else {}
    if role == "assistant" and last.get("tool_calls"):  # said after it called, before it was answered
        last["content"] += said
    elif role == "system" and all(message["role"] == "system" for message in messages) and messages:
        last["content"] += f"\n\n{said}"
    else:
        messages.append({"role": role, "content": said})


def _add_call(messages: list[Message], item: Item) -> None:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    function = {"name": item["name"], "arguments": item["arguments"]}
    calls = earlier_calls("input", [{"id": item["call_id"], "function": function}])
    messages[-1].setdefault("tool_calls", []).extend(calls)


def functions_of(name: str, tools: Any, notes: Notes) -> tuple[dict[str, Any], ...]:
    """The tools that are functions, in the form that chat templates take. Others have no effect: nobody would run them."""
    functions = []
    for index, tool in enumerate(any_tools(name, tools)):
        place = f"{name}[{index}]"
        kind = mapping(place, tool).get("type")
        kind = "function" if kind is None else kind
        if type(kind) is not str:
            raise refuse(f"{place}.type", "a string", kind)
        if kind != "function":
            notes.without_effect(kind, (), f"{place}.")
            continue
        fields = _checked(place, tool, _TOOL, notes, ("name",))
        function = {field: fields[field] for field in ("name", "description", "parameters") if field in fields}
        functions.append({"type": "function", "function": function})
    return tuple(functions)
