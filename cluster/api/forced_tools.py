"""`tool_choice`, in each surface's form: which tools may be called, and whether one must be.

A call that must be is the whole answer, held to the tools' schemas, so that any model makes one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cluster.api.fields import mapping, refuse, text
from cluster.api.schemas import NULL, Schema, described, or_null
from cluster.api.structured import MOST_CHARACTERS
from cluster.serving.requests import ForcedCall, Structure
from protocol.errors import BadRequest

Tool = dict[str, Any]
_WORDS = '"none", "auto", "required", or an object that names a tool'


class ToolChoice(msgspec.Struct, frozen=True):
    """allowed: names of the tools that may be called, None for all; is_forced: one must be; is_named: which one was said."""

    allowed: tuple[str, ...] | None = None
    is_forced: bool = False
    is_named: bool = False


class ChosenTools(msgspec.Struct, frozen=True):
    """What follows from a choice. tools: for the chat template; forced, structure: the call that the answer has to be."""

    tools: tuple[Tool, ...]
    forced: ForcedCall | None = None
    structure: Structure | None = None


AUTO = ToolChoice()
_CHOICES = {
    "none": ToolChoice(()),
    "auto": AUTO,
    "required": ToolChoice(is_forced=True),
    "any": ToolChoice(is_forced=True),
}


_NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 256}


def _object(required: Schema, **properties: Schema) -> Schema:
    return {"type": "object", "properties": required | properties, "required": list(required)}


_NAMED: Schema = {"anyOf": [_object({"function": _object({"name": _NAME})}), _object({"name": _NAME}, function=NULL)]}
_ALLOWED: Schema = {"tools": {"type": "array", "items": _NAMED, "minItems": 1}}
_MODE: Schema = or_null({"enum": ["auto", "required"]})
_FUNCTION, _ALLOWED_TOOLS = {"enum": ["function"]}, {"enum": ["allowed_tools"]}
_OPENAI: Schema = {
    "anyOf": [
        {"enum": list(_CHOICES)},
        _object({"type": _FUNCTION, "function": _object({"name": _NAME})}),
        _object({"type": _FUNCTION, "name": _NAME}, function=NULL),
        _object({"type": _ALLOWED_TOOLS, "allowed_tools": _object(_ALLOWED, mode=_MODE)}),
        _object({"type": _ALLOWED_TOOLS, **_ALLOWED}, mode=_MODE, allowed_tools=NULL),
    ]
}
_IS_SINGLE: Schema = or_null({"type": "boolean"})
_ANTHROPIC: Schema = {
    "anyOf": [
        _object({"type": {"enum": ["auto", "any", "none"]}}, disable_parallel_tool_use=_IS_SINGLE),
        _object({"type": {"enum": ["tool"]}, "name": _NAME}, disable_parallel_tool_use=_IS_SINGLE),
    ]
}


@described(_OPENAI)
def tool_choice(name: str, value: Any) -> ToolChoice:
    """OpenAI's, of chat completions and of responses, which name a tool at different depths."""
    if type(value) is str:
        if value not in _CHOICES:
            raise refuse(name, _WORDS, value)
        return _CHOICES[value]
    given = mapping(name, value)
    match given.get("type"):
        case "function":
            return ToolChoice((_name_in(name, given),), is_forced=True, is_named=True)
        case "allowed_tools":
            within = given.get("allowed_tools")
            return _allowed_tools(name, given if within is None else mapping(f"{name}.allowed_tools", within))
    raise refuse(f"{name}.type", '"function" or "allowed_tools"', given.get("type"))


@described(_ANTHROPIC)
def anthropic_choice(name: str, value: Any) -> ToolChoice:
    """Anthropic's, an object with a type."""
    given = mapping(name, value)
    match given.get("type"):
        case "auto" | "none" | "any" as word:
            return _CHOICES[word]
        case "tool":
            return ToolChoice((text(1, 256)(f"{name}.name", given.get("name")),), is_forced=True)
    raise refuse(f"{name}.type", '"auto", "any", "tool" or "none"', given.get("type"))


def _allowed_tools(name: str, given: Mapping[str, Any]) -> ToolChoice:
    mode, tools = given.get("mode"), given.get("tools")
    if mode not in (None, "auto", "required"):
        raise refuse(f"{name}.mode", '"auto" or "required"', mode)
    if type(tools) is not list or not tools:
        raise refuse(f"{name}.tools", "a list of at least one tool", tools)
    names = tuple(_name_in(f"{name}.tools[{place}]", tool) for place, tool in enumerate(tools))
    return ToolChoice(names, is_forced=mode == "required")


def _name_in(name: str, value: Any) -> str:
    given = mapping(name, value)
    if given.get("function") is not None:
        name, given = f"{name}.function", mapping(f"{name}.function", given["function"])
    found: str = text(1, 256)(f"{name}.name", given.get("name"))
    return found


def chosen(choice: ToolChoice, tools: Sequence[Tool], field: str = "tool_choice") -> ChosenTools:
    """What follows from it for these tools, which have OpenAI's form. Whether they can be followed is found out later."""
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    names = tuple(schemas) if choice.allowed is None else choice.allowed
    if not choice.is_forced:
        return ChosenTools(tuple(tool for tool in tools if tool["function"]["name"] in names))
    source = msgspec.json.encode({name: schemas.get(name) for name in names}).decode()
    if len(source) > MOST_CHARACTERS:
        raise BadRequest(
            f"the tools' parameters have {len(source)} characters; where a call is forced, send at most {MOST_CHARACTERS}",
            param="tools",
        )
    forced = ForcedCall(names, "stop" if choice.is_named else "tool_calls")
    return ChosenTools(tuple(tools), forced, Structure(kind="calls", source=source, field=field))
