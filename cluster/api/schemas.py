"""What checks accept, as JSON schemas: each check carries its own, and those of an object's fields make the object's.

Knows JSON Schema 2020-12 and nothing of HTTP. Nothing is made before it is asked for.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

Schema = dict[str, Any]
# A schema, or what makes it once it is asked for.
Stated = Schema | Callable[[], Schema]

NULL: Schema = {"type": "null"}
NOTHING: Schema = {"not": {}}
_Found_co = TypeVar("_Found_co", covariant=True)


class Described(Generic[_Found_co]):
    """A check that says what it accepts. A field's null never reaches its check, and is no part of what it says."""

    def __init__(self, check: Callable[[str, Any], _Found_co], stated: Stated) -> None:
        self._check = check
        self._stated = stated

    def __call__(self, name: str, value: Any) -> _Found_co:
        return self._check(name, value)

    def __repr__(self) -> str:
        return f"Described({self._check.__qualname__})"

    @property
    def schema(self) -> Schema:
        return self._stated if isinstance(self._stated, dict) else self._stated()


def described(stated: Stated) -> Callable[[Callable[[str, Any], _Found_co]], Described[_Found_co]]:
    """Gives a check its schema."""

    def with_schema(check: Callable[[str, Any], _Found_co]) -> Described[_Found_co]:
        return Described(check, stated)

    return with_schema


def schema_of(check: Callable[[str, Any], Any]) -> Schema:
    """Raises TypeError for a check without one."""
    if not isinstance(check, Described):
        raise TypeError(f"the check {check!r} has no schema; give it one with `described`")
    return check.schema


def object_schema(checks: Mapping[str, Callable[[str, Any], Any]], required: Iterable[str] = (), **more: Any) -> Schema:
    """An object whose fields are checked one by one: each may be null, as if it were absent, unless `required`; others are allowed."""
    needed = list(required)
    fields = {name: schema_of(check) for name, check in checks.items()}
    properties = {name: schema if name in needed else or_null(schema) for name, schema in fields.items()}
    return {"type": "object", "properties": properties} | ({"required": needed} if needed else {}) | more


def or_null(schema: Schema) -> Schema:
    """The same, and null beside it."""
    return NULL if schema == NOTHING else any_of(schema, NULL) if schema else {}


def any_of(*schemas: Schema) -> Schema:
    """What one of them allows; those that are lists of others are taken apart."""
    flat = [each for schema in schemas for each in (schema["anyOf"] if schema.keys() == {"anyOf"} else [schema])]
    values = [value for each in flat if each.keys() == {"enum"} for value in each["enum"]]
    rest = [each for each in flat if each.keys() != {"enum"}]
    if values and NULL in rest:  # one list of values is easier to read
        rest.remove(NULL)
        values.append(None)
    together = [*([{"enum": values}] if values else []), *rest]
    return together[0] if len(together) == 1 else {"anyOf": together}


def list_of(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items} | more


def component(name: str) -> Schema:
    """What a document calls so."""
    return {"$ref": f"#/components/schemas/{name}"}
