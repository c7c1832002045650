"""Schemas read as their authors mean them: an object that names its properties has no others, unless the schema says so.

JSON Schema allows any others, and a model that may go on with them does, often to the end of what it may say; llama.cpp and XGrammar
read schemas like this as well. What is said by several parts together (`allOf`, a `$ref` beside something, properties beside `anyOf`)
stays as it is.
"""

from typing import Any

_TOGETHER = ("allOf", "anyOf", "oneOf", "$ref", "if", "not", "dependentSchemas")
_SAYS_SO = ("additionalProperties", "patternProperties", "unevaluatedProperties")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with `additionalProperties: false` where that is meant. With an `allOf` in it, as it is."""
    return _closed(schema) if not _adds_up(schema) else schema


def _adds_up(value: Any) -> bool:
    """Whether somewhere in it a schema is the sum of others, of which each would keep out what the others name."""
    if isinstance(value, list):
        return any(map(_adds_up, value))
    if not isinstance(value, dict):
        return False
    return "allOf" in value or ("$ref" in value and "properties" in value) or any(map(_adds_up, value.values()))


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    if "properties" in schema and any(name in schema for name in _TOGETHER):
        return schema
    made = dict(schema)
    for name in _NAMED:
        if isinstance(named := schema.get(name), dict):
            made[name] = {key: _closed(value) for key, value in named.items()}
    for name in _LISTED:
        if isinstance(listed := schema.get(name), list):
            made[name] = [_closed(value) for value in listed]
    for name in _SINGLE:
        if name in schema:
            made[name] = _closed(schema[name])
    return made | {"additionalProperties": False} if _names_all(schema) else made


def _names_all(schema: dict[str, Any]) -> bool:
    """Whether its properties can be all: none of those that are asked for would be missing."""
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not properties or any(name in schema for name in _SAYS_SO):
        return False
    least = schema.get("minProperties", 0)
    few = isinstance(least, int) and least <= len(properties)
    return few and isinstance(required, list) and all(name in properties for name in required)
