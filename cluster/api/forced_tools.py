"""`tool_choice`, in each surface's form: which tools may be called, and whether one must be.

A call that must be is the whole answer, held to the tools' schemas, so that any model makes one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cluster.api.fields import mapping, refuse, text
from cluster.api.schemas import described
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


@described({"anyOf": [{"enum": list(_CHOICES)}, {"type": "object", "required": ["type"]}]})
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
            return _allowed_tools(name, mapping(f"{name}.allowed_tools", given.get("allowed_tools", given)))
    raise refuse(f"{name}.type", '"function" or "allowed_tools"', given.get("type"))


@described({"type": "object", "properties": {"type": {"enum": ["auto", "any", "tool", "none"]}}, "required": ["type"]})
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
    mode, tools = given.get("mode", "auto"), given.get("tools")
    if mode not in ("auto", "required"):
        raise refuse(f"{name}.mode", '"auto" or "required"', mode)
    if type(tools) is not list or not tools:
        raise refuse(f"{name}.tools", "a list of at least one tool", tools)
    names = tuple(_name_in(f"{name}.tools[{place}]", tool) for place, tool in enumerate(tools))
    return ToolChoice(names, is_forced=mode == "required")


def _name_in(name: str, value: Any) -> str:
    given = mapping(name, value)
    if "function" in given:
        name, given = f"{name}.function", mapping(f"{name}.function", given["function"])
    found: str = text(1, 256)(f"{name}.name", given.get("name"))
    return found


def chosen(choice: ToolChoice, tools: Sequence[Tool], field: str = "tool_choice") -> ChosenTools:
    """What follows from it for these tools, which have OpenAI's form. Raises BadRequest for one that is not among them."""
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    for name in choice.allowed or ():
        if name not in schemas:
            raise BadRequest(f"{field} names {name!r}, which is not among the tools", param=field)
    names = tuple(schemas) if choice.allowed is None else choice.allowed
    if not choice.is_forced:
        return ChosenTools(tuple(tool for tool in tools if tool["function"]["name"] in names))
    if not names:
        raise BadRequest(f"{field} asks for a call, but there are no tools; send some", param=field)
    arguments = {name: _arguments(name, schemas[name]) for name in names}
    source = msgspec.json.encode(arguments).decode()
    if len(source) > MOST_CHARACTERS:
        raise BadRequest(
            f"the tools' parameters have {len(source)} characters; where a call is forced, send at most {MOST_CHARACTERS}",
            param="tools",
        )
    forced = ForcedCall(names, "stop" if choice.is_named else "tool_calls")
    return ChosenTools(tuple(tools), forced, Structure(kind="calls", source=source, field=field))


def _arguments(name: str, parameters: Any) -> dict[str, Any]:
    """The schema of a tool's arguments, which are an object."""
    schema = {} if parameters is None else parameters
    if type(schema) is not dict:
        raise refuse(f"the parameters of {name!r}", "a JSON schema", schema)
    return schema if "type" in schema else {"type": "object"} | schema
