"""Checks of single JSON values. Each takes the field's name and value, returns the value or raises BadRequest.

They know JSON's types and ranges and nothing of OpenAI. A boolean is never a number, and a number never text; but text that is
a number is taken as one, and so is 4.0 as an integer. What has no effect is said, in `Notes`.
"""

import contextlib
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any, Final

from protocol.errors import BadRequest

Check = Callable[[str, Any], Any]
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


def integer(low: int, high: int) -> Check:
    """An integer from `low` to `high`, both included."""

    def check(name: str, value: Any) -> int:
        given = _as_number(value)
        whole = int(given) if type(given) is float and given.is_integer() else given
        if type(whole) is not int or not low <= whole <= high:
            raise refuse(name, f"an integer from {low} to {high}", value)
        return whole

    return check


def number(low: float, high: float, *, above_low: bool = False) -> Check:
    """A finite number from `low` to `high`; `above_low` excludes `low` itself."""
    bounds = f"above {low:g} and at most {high:g}" if above_low else f"from {low:g} to {high:g}"

    def check(name: str, value: Any) -> float:
        given = _as_number(value)
        if type(given) not in (int, float) or not low <= given <= high or (above_low and given == low):
            raise refuse(name, f"a number {bounds}", value)
        return float(given)

    return check


def _as_number(value: Any) -> Any:
    """What text says, where it is a short number."""
    if type(value) is not str or not 0 < len(value) <= 40:
        return value
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(value)
    return value


def flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise refuse(name, "true or false", value)
    return value


def text(low: int, high: int) -> Check:
    """A string of `low` to `high` characters."""

    def check(name: str, value: Any) -> str:
        if type(value) is not str or not low <= len(value) <= high:
            raise refuse(name, f"a string of {low} to {high} characters", value)
        return value

    return check


def one_of(*allowed: str) -> Check:
    def check(name: str, value: Any) -> str:
        if type(value) is not str or value not in allowed:
            raise refuse(name, " or ".join(f'"{item}"' for item in allowed), value)
        return value

    return check


def only(what: str, *neutral: Any) -> Check:
    """A parameter that is understood but not supported: accepted only with a value that asks for nothing, which it returns."""

    def check(name: str, value: Any) -> Any:
        # True == 1 in Python, in JSON it is another value.
        if not any(type(value) is type(item) and value == item for item in neutral):
            allowed = f"; leave it out or send {' or '.join(map(_as_json, neutral))}" if neutral else "; leave it out"
            raise BadRequest(f"{name} asks for {what}, which is not supported{allowed}", param=name)
        return value

    return check


def strings(high_count: int, high_length: int) -> Check:
    """A non-empty string, or a list of up to `high_count` of them; returns a tuple."""
    one = text(1, high_length)

    def check(name: str, value: Any) -> tuple[str, ...]:
        items = [value] if type(value) is str else value
        if type(items) is not list or len(items) > high_count:
            raise refuse(name, f"a string or a list of at most {high_count} strings", value)
        return tuple(one(name, item) for item in items)

    return check


def token_biases(name: str, value: Any) -> dict[int, float] | None:
    """{"token id": bias from -100 to 100}; None when empty."""
    if type(value) is not dict:
        raise refuse(name, 'an object like {"42": -100}', value)
    bias = number(-100, 100)
    biases = {}
    for key, item in value.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 9):
            raise refuse(name, "an object whose keys are token ids", key)
        biases[int(key)] = bias(f"{name}.{key}", item)
    return biases or None


def hint(*neutral: Any) -> Check:
    """A field that is accepted and changes nothing, whatever it says; `neutral` values and null ask for nothing."""

    def check(_name: str, value: Any) -> Any:
        return None if any(type(value) is type(item) and value == item for item in neutral) else NO_EFFECT

    return check


def anything(_name: str, value: Any) -> Any:
    """For a field that is looked at elsewhere."""
    return value


def mapping(name: str, value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise refuse(name, "an object", value)
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
