"""The ways in which clients say what an answer has to be: OpenAI's, vLLM's, llama.cpp's, Ollama's and Anthropic's, as one `Structure`.

Whether a schema or a grammar can be followed is found out when it is compiled, not here.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from cluster.api.fields import Check, Notes, check_all, flag, hint, mapping, mapping_of, refuse, text
from cluster.api.schemas import NOTHING, Schema, described, or_null
from cluster.serving.requests import Structure
from protocol.errors import BadRequest

MOST_CHARACTERS = 1 << 17
_MOST_CHOICES = 4096
_ANY_OBJECT: Schema = {"type": "object"}
_TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": MOST_CHARACTERS}
_JSON_SCHEMA: Schema = {"anyOf": [_ANY_OBJECT, _TEXT]}


def _format_of(kind: str, properties: Schema, *required: str) -> Schema:
    return {
        "type": "object",
        "properties": {"type": {"enum": [kind]}, **properties},
        "required": ["type", *required],
    }


_DESCRIBED: Schema = {"schema": _JSON_SCHEMA, "strict": or_null({"type": "boolean"})}
_FORMAT_SCHEMA: Schema = {
    "anyOf": [
        _format_of("text", {}),
        _format_of("json_object", {"schema": or_null(_JSON_SCHEMA)}),
        _format_of(
            "json_schema",
            {"json_schema": {"type": "object", "properties": _DESCRIBED, "required": ["schema"]}},
            "json_schema",
        ),
        _format_of("json_schema", {"json_schema": {"type": "null"}, **_DESCRIBED}, "schema"),
    ]
}


def _structure(kind: Any, name: str, source: str) -> Structure:
    if len(source) > MOST_CHARACTERS:
        raise BadRequest(f"{name} has {len(source)} characters; send at most {MOST_CHARACTERS}", param=name)
    return Structure(kind=kind, source=source, field=name)


@described(_JSON_SCHEMA)
def json_schema(name: str, value: Any) -> Structure:
    """A schema as an object, or as its JSON text."""
    if type(value) is str:
        return _structure("json", name, text(1, MOST_CHARACTERS)(name, value))
    return _structure("json", name, msgspec.json.encode(mapping(name, value)).decode())


@described(_ANY_OBJECT)
def some_json_schema(name: str, value: Any) -> Structure | None:
    """An empty one asks for nothing."""
    return json_schema(name, mapping(name, value)) if value != {} else None


@described(_TEXT)
def regex(name: str, value: Any) -> Structure:
    return _structure("regex", name, text(1, MOST_CHARACTERS)(name, value))


@described({"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": _MOST_CHOICES})
def choice(name: str, value: Any) -> Structure:
    """A list of the texts that an answer may be."""
    if type(value) is not list or not 0 < len(value) <= _MOST_CHOICES or not all(type(item) is str for item in value):
        raise refuse(name, f"a list of 1 to {_MOST_CHOICES} strings", value)
    return _structure("choice", name, msgspec.json.encode(value).decode())


@described({"type": "string", "minLength": 1, "maxLength": MOST_CHARACTERS})
def grammar(name: str, value: Any) -> Structure:
    """In GBNF, as llama.cpp has it, or in Lark."""
    return _structure("grammar", name, text(1, MOST_CHARACTERS)(name, value))


@described({"type": "string", "maxLength": MOST_CHARACTERS})
def some_grammar(name: str, value: Any) -> Structure | None:
    """An empty one asks for nothing."""
    return grammar(name, value) if value != "" else None


@described(_FORMAT_SCHEMA)
def response_format(name: str, value: Any) -> Structure | None:
    """OpenAI's: text, any JSON object, or a schema, in an object of its own or beside the type."""
    given = mapping(name, value)
    within = f"{name}.json_schema"
    match given.get("type"):
        case "text":
            return None
        case "json_object":
            schema = given.get("schema")
            return json_schema(f"{name}.schema", _ANY_OBJECT if schema is None else schema)
        case "json_schema" if given.get("json_schema") is not None:
            return _described(within, mapping(within, given["json_schema"]))
        case "json_schema":
            return _described(name, given)
    raise refuse(f"{name}.type", '"text", "json_object" or "json_schema"', given.get("type"))


def _described(name: str, value: Mapping[str, Any]) -> Structure:
    """A schema with its name. It is followed to the letter, whether `strict` asks for that or not."""
    if value.get("schema") is None:
        raise BadRequest(f"{name}.schema is missing", param=f"{name}.schema")
    if value.get("strict") is not None:
        flag(f"{name}.strict", value["strict"])
    return json_schema(f"{name}.schema", value["schema"])


@described({"anyOf": [{"enum": ["", "json"]}, _ANY_OBJECT]})
def ollama_format(name: str, value: Any) -> Structure | None:
    """Ollama's: "json" or a schema; an empty text asks for nothing."""
    if value == "":
        return None
    if value == "json":
        return _structure("json", name, msgspec.json.encode(_ANY_OBJECT).decode())
    if type(value) is not dict:
        raise refuse(name, '"json" or a JSON schema', value)
    return json_schema(name, value)


@described(NOTHING)
def structural_tag(name: str, _: Any) -> None:
    raise BadRequest(f"{name} is not supported; send json, regex, choice or grammar", param=name)


@described({"type": "boolean"})
def json_object(name: str, value: Any) -> Structure | None:
    """Whether it has to be any JSON object."""
    return _structure("json", name, msgspec.json.encode(_ANY_OBJECT).decode()) if flag(name, value) else None


_OUTPUTS: dict[str, Check] = {
    "json": json_schema,
    "regex": regex,
    "choice": choice,
    "grammar": grammar,
    "json_object": json_object,
    "structural_tag": structural_tag,
    "disable_fallback": hint(),
    "whitespace_pattern": hint(),
}
# How it is said, in whichever surface.
STRUCTURED: dict[str, Check] = {
    "response_format": response_format,
    "guided_json": json_schema,
    "guided_regex": regex,
    "guided_choice": choice,
    "guided_grammar": grammar,
    "guided_decoding_backend": hint(),
    "guided_whitespace_pattern": hint(),
    "structured_outputs": mapping_of(_OUTPUTS),
    "grammar": some_grammar,
    "json_schema": some_json_schema,
}
_SAID_BY = (*STRUCTURED, "format", "output_format")  # and how one surface or the other says it


def structure_of(fields: Mapping[str, Any], notes: Notes) -> Structure | None:
    """What checked `fields` say that an answer has to be: what the first of them says, the others have no effect then."""
    outputs = check_all(fields.get("structured_outputs", {}), _OUTPUTS, notes, "structured_outputs.")
    said = [item for name in _SAID_BY if isinstance(item := fields.get(name), Structure)]
    said += [item for item in outputs.values() if item is not None]
    for other in said[1:]:
        notes.without_effect(other.field, ())
    if said and fields.get("ignore_eos"):
        notes.without_effect("ignore_eos", ())
    return said[0] if said else None
