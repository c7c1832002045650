"""Checks of single JSON values. Each takes the field's name and value, returns the value or raises BadRequest.

They know JSON's types and ranges and nothing of OpenAI. A boolean is never a number, and a number never text.
"""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from protocol.errors import BadRequest

Check = Callable[[str, Any], Any]


def refuse(name: str, must: str, value: Any) -> BadRequest:
    """The error for a value that is not what it must be; long values are cut."""
    shown = repr(value)
    return BadRequest(f"{name} must be {must}, not {shown if len(shown) <= 60 else shown[:57] + '...'}", param=name)


def integer(low: int, high: int) -> Check:
    """An integer from `low` to `high`, both included."""

    def check(name: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise refuse(name, f"an integer from {low} to {high}", value)
        return value

    return check


def number(low: float, high: float, *, above_low: bool = False) -> Check:
    """A finite number from `low` to `high`; `above_low` excludes `low` itself."""
    bounds = f"above {low:g} and at most {high:g}" if above_low else f"from {low:g} to {high:g}"

    def check(name: str, value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high or (above_low and value == low):
            raise refuse(name, f"a number {bounds}", value)
        return float(value)

    return check


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
    """A parameter that is understood but not supported: accepted only with a value that asks for nothing."""

    def check(name: str, value: Any) -> None:
        # True == 1 in Python, in JSON it is another value.
        if not any(type(value) is type(item) and value == item for item in neutral):
            allowed = f"; leave it out or send {' or '.join(map(_as_json, neutral))}" if neutral else "; leave it out"
            raise BadRequest(f"{name} asks for {what}, which is not supported{allowed}", param=name)

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


def ignored(check: Check) -> Check:
    """A field that is accepted for its callers' bookkeeping and changes nothing here; it must still be well formed."""

    def checked(name: str, value: Any) -> None:
        check(name, value)

    return checked


def mapping(name: str, value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise refuse(name, "an object", value)
    return value


def unknown(name: str, known: Iterable[str], prefix: str = "") -> BadRequest:
    """The error for a field that nobody knows, with the nearest known one."""
    near = get_close_matches(name[:100], list(known), n=1)
    shown = name if len(name) <= 60 else name[:57] + "..."
    hint = f"; did you mean {near[0]}?" if near else ""
    return BadRequest(f"unknown field {prefix}{shown}{hint}", param=f"{prefix}{shown}")


def check_all(fields: dict[str, Any], checks: dict[str, Check], prefix: str = "") -> dict[str, Any]:
    """Every field through its check. A null is an absent field. Raises BadRequest for a field without a check."""
    checked = {}
    for name, value in fields.items():
        if name not in checks:
            raise unknown(name, checks, prefix)
        if value is not None:
            checked[name] = checks[name](prefix + name, value)
    return checked


def _as_json(value: Any) -> str:
    return {True: "true", False: "false"}[value] if type(value) is bool else repr(value).replace("'", '"')
