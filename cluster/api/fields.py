"""Checks of single JSON values. Each takes the field's name and value, returns the value or raises BadRequest.

They know JSON's types and ranges and nothing of OpenAI. A boolean is never a number, and a number never text; but text that is
a number is taken as one, and so is 4.0 as an integer. What has no effect is said, in `Notes`. Each says as a schema what it
accepts, by which the API is described.
"""

import functools
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, Final

from cluster.api.number_texts import integer_pattern, number_pattern
from cluster.api.schemas import NOTHING, Described, any_of, component, described, list_of, object_schema
from protocol.errors import BadRequest

Check = Callable[[str, Any], Any]
MAX_TOKEN_ID = 2**31 - 1
_MANY_DIGITS = 10**9
NO_EFFECT: Final = object()
"""What a check gives for a value that is accepted and changes nothing, though it asks for something."""
# Of the fields of one body that have no effect, so many are named.
_MOST_NOTES = 20


class Notes:
    """What of one body has no effect. strict: raise BadRequest for it instead."""

    def __init__(self, *, strict: bool = False):
        self._strict = strict
        self._names: dict[str, None] = {}

    def __repr__(self) -> str:
        return f"Notes({list(self._names)})"

    def without_effect(self, name: str, known: Iterable[str], prefix: str = "") -> None:
        """A field that is accepted all the same."""
        if self._strict:
            raise unknown(name, known, prefix)
        self._names[prefix + _shown(name)] = None

    @property
    def clauses(self) -> tuple[str, ...]:
        """For the client."""
        said = [f"the field {name} has no effect here" for name in list(self._names)[:_MOST_NOTES]]
        more = len(self._names) - len(said)
        return (*said, *((f"{more} further fields have no effect here",) if more > 0 else ()))


def refuse(name: str, must: str, value: Any) -> BadRequest:
    """The error for a value that is not what it must be; long values are cut."""
    shown = repr(value)
    return BadRequest(f"{name} must be {must}, not {shown if len(shown) <= 60 else shown[:57] + '...'}", param=name)


def integer(low: int, high: int) -> Described[int]:
    """An integer from `low` to `high`, both included; text of it has fewer digits than a bound of many."""
    of_text = _TextAs(int, lambda: integer_pattern(_of_fewer_digits(low), _of_fewer_digits(high)))
    one = whole_number(low, high)

    @described(lambda: any_of(one.schema, of_text.schema))
    def check(name: str, value: Any) -> int:
        return one(name, of_text.read(value))

    return check


def whole_number(low: int, high: int) -> Described[int]:
    """An integer that is no text, where text is something else."""

    @described({"type": "integer", "minimum": low, "maximum": high})
    def check(name: str, value: Any) -> int:
        whole = int(value) if type(value) is float and value.is_integer() else value
        if type(whole) is not int or not low <= whole <= high:
            raise refuse(name, f"an integer from {low} to {high}", value)
        return whole

    return check


def number(low: float, high: float) -> Described[float]:
    """A finite number from `low` to `high`, both included."""
    of_text = _TextAs(float, lambda: number_pattern(low, high))

    @described(lambda: any_of({"type": "number", "minimum": low, "maximum": high}, of_text.schema))
    def check(name: str, value: Any) -> float:
        given = of_text.read(value)
        if type(given) not in (int, float) or not low <= given <= high:
            raise refuse(name, f"a number from {low:g} to {high:g}", value)
        return float(given)

    return check


def _of_fewer_digits(bound: int) -> int:
    """The furthest number on the way to a large bound whose digits are all nines: what text up to it is, is short to say."""
    if abs(bound) < _MANY_DIGITS:
        return bound
    return (10 ** (len(str(abs(bound))) - 1) - 1) * (1 if bound > 0 else -1)


class _TextAs:
    """Text that stands for a number of a range. pattern: makes the expression that such text matches."""

    def __init__(self, kind: type[int] | type[float], pattern: Callable[[], str]) -> None:
        self._kind = kind
        self._pattern = pattern

    @functools.cached_property
    def _expression(self) -> re.Pattern[str]:
        return re.compile(self._pattern())

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": self._expression.pattern}

    def read(self, value: Any) -> Any:
        """The number that text stands for; whatever else there is, as it is."""
        if type(value) is not str or not self._expression.fullmatch(value):
            return value
        return self._kind(float(value) if "." in value else value)


@described({"type": "boolean"})
def flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise refuse(name, "true or false", value)
    return value


def text(low: int, high: int) -> Described[str]:
    """A string of `low` to `high` characters."""

    @described({"type": "string", **({"minLength": low} if low else {}), "maxLength": high})
    def check(name: str, value: Any) -> str:
        if type(value) is not str or not low <= len(value) <= high:
            raise refuse(name, f"a string of {low} to {high} characters", value)
        return value

    return check


def one_of(*allowed: str) -> Described[str]:
    @described({"enum": list(allowed)})
    def check(name: str, value: Any) -> str:
        if type(value) is not str or value not in allowed:
            raise refuse(name, " or ".join(f'"{item}"' for item in allowed), value)
        return value

    return check


def only(what: str, *neutral: Any) -> Described[Any]:
    """A parameter that is understood but not supported: accepted only with a value that asks for nothing, which it returns."""

    @described({"enum": list(neutral)} if neutral else NOTHING)
    def check(name: str, value: Any) -> Any:
        if not any(_is_same(value, item) for item in neutral):
            allowed = f"; leave it out or send {' or '.join(map(_as_json, neutral))}" if neutral else "; leave it out"
            raise BadRequest(f"{name} asks for {what}, which is not supported{allowed}", param=name)
        return value

    return check


def strings(high_count: int, high_length: int) -> Described[tuple[str, ...]]:
    """A non-empty string, or a list of up to `high_count` of them; returns a tuple."""
    one = text(1, high_length)

    @described(lambda: any_of(one.schema, list_of(one.schema, maxItems=high_count)))
    def check(name: str, value: Any) -> tuple[str, ...]:
        items = [value] if type(value) is str else value
        if type(items) is not list or len(items) > high_count:
            raise refuse(name, f"a string or a list of at most {high_count} strings", value)
        return tuple(one(name, item) for item in items)

    return check


_BIAS = number(-100, 100)
_TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}")


@described(
    lambda: {
        "type": "object",
        "propertyNames": component("TokenIdText"),
        "additionalProperties": _BIAS.schema,
    }
)
def token_biases(name: str, value: Any) -> dict[int, float] | None:
    """{"token id": bias from -100 to 100}; None when empty."""
    if type(value) is not dict:
        raise refuse(name, 'an object like {"42": -100}', value)
    biases = {}
    for key, item in value.items():
        if not _TOKEN_ID.fullmatch(key) or int(key) > MAX_TOKEN_ID:
            raise refuse(name, "an object whose keys are token ids", key)
        biases[int(key)] = _BIAS(f"{name}.{key}", item)
    return biases or None


def hint(*neutral: Any) -> Described[Any]:
    """A field that is accepted and changes nothing, whatever it says; `neutral` values and null ask for nothing."""

    @described({})
    def check(_name: str, value: Any) -> Any:
        return None if any(_is_same(value, item) for item in neutral) else NO_EFFECT

    return check


def _is_same(value: Any, other: Any) -> bool:
    """As JSON values: True == 1 in Python, there it is another one."""
    return (type(value) is bool) is (type(other) is bool) and bool(value == other)


@described({})
def anything(_name: str, value: Any) -> Any:
    """For a field that is looked at elsewhere."""
    return value


@described({"type": "object"})
def mapping(name: str, value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise refuse(name, "an object", value)
    return value


def mapping_of(checks: dict[str, Check], required: Iterable[str] = ()) -> Described[dict[str, Any]]:
    """An object whose fields are checked elsewhere, by these."""
    return described(lambda: object_schema(checks, required))(mapping)


@described({"type": "string"})
def any_text(name: str, value: Any) -> str:
    if type(value) is not str:
        raise refuse(name, "a string", value)
    return value


def unknown(name: str, known: Iterable[str], prefix: str = "") -> BadRequest:
    """The error for a field without effect, with the nearest one that has some."""
    near = get_close_matches(name[:100], list(known), n=1)
    asks = f"; did you mean {near[0]}?" if near and near[0] != name else ""
    return BadRequest(f"{prefix}{_shown(name)} has no effect here{asks}", param=f"{prefix}{_shown(name)}")


def _shown(name: str) -> str:
    return name if len(name) <= 60 else name[:57] + "..."


def check_all(fields: dict[str, Any], checks: dict[str, Check], notes: Notes, prefix: str = "") -> dict[str, Any]:
    """Every field through its check. A null is an absent field; one without a check, or for which there is nothing to do, is noted."""
    checked = {}
    for name, value in fields.items():
        if value is None:
            continue
        found = checks[name](prefix + name, value) if name in checks else NO_EFFECT
        if found is NO_EFFECT:
            notes.without_effect(name, checks, prefix)
        else:
            checked[name] = found
    return checked


def _as_json(value: Any) -> str:
    return {True: "true", False: "false"}[value] if type(value) is bool else repr(value).replace("'", '"')
