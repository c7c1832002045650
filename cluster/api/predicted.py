"""OpenAI's `prediction`: text that the answer is likely to have in it, given in advance."""

from typing import Any

from cluster.api.fields import described, mapping, refuse
from cluster.api.schemas import Schema, any_of, list_of

_TEXT = {"type": "string"}


def _schema() -> Schema:
    part = {"type": "object", "required": ["type", "text"], "properties": {"type": {"enum": ["text"]}, "text": _TEXT}}
    properties = {"type": {"enum": ["content"]}, "content": any_of(_TEXT, list_of(part))}
    return {"type": "object", "required": ["type", "content"], "properties": properties}


@described(_schema)
def prediction(name: str, value: Any) -> str:
    """The text."""
    fields = mapping(name, value)
    if fields.get("type") != "content":
        raise refuse(f"{name}.type", '"content"', fields.get("type"))
    content = fields.get("content")
    if type(content) is str:
        return content
    if type(content) is not list:
        raise refuse(f"{name}.content", "a string or a list of text parts", content)
    return "".join(_text_of(f"{name}.content[{index}]", part) for index, part in enumerate(content))


def _text_of(name: str, part: Any) -> str:
    text = mapping(name, part).get("text")
    if part.get("type") != "text" or type(text) is not str:
        raise refuse(name, "a part that is text", part)
    return text
