"""Random JSON schemas, of what programs ask models for: objects, lists, choices, bounds, patterns; nested a little."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema

_NAMES = st.text(alphabet="abcxyz_é", min_size=1, max_size=6)
# What a constant or a choice may be, as hypothesis-jsonschema makes it.
_VALUES = from_schema(
    {
        "anyOf": [
            {"type": ["null", "boolean"]},
            {"type": "integer", "minimum": -999, "maximum": 999},
            {"type": "string", "maxLength": 8},
            {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
        ]
    }
)
_PATTERNS = ("^[a-z]{1,5}$", "^\\d{3}-\\d{2}$", "^(red|green|blue)$", "[A-Z][a-z]*", "^x+y?$")


def _between(low: int, high: int, names: Sequence[str], least: int = 0, most: int = 20) -> Any:
    """Two bounds in order, under these names."""
    pairs = st.tuples(st.integers(least, most), st.integers(least, most)).map(sorted)
    return pairs.map(lambda pair: {names[0]: pair[0] + low, names[1]: pair[1] + high})


_LEAVES = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda bounds: {"type": "integer", **bounds}, _between(-9, 9, ("minimum", "maximum"))),
    st.builds(lambda bounds: {"type": "number", **bounds}, _between(-9, 9, ("exclusiveMinimum", "maximum"))),
    st.builds(lambda multiple: {"type": "integer", "multipleOf": multiple}, st.integers(1, 30)),
    st.builds(lambda bounds: {"type": "string", **bounds}, _between(0, 3, ("minLength", "maxLength"))),
    st.builds(lambda pattern: {"type": "string", "pattern": pattern}, st.sampled_from(_PATTERNS)),
    st.builds(lambda kind: {"type": "string", "format": kind}, st.sampled_from(("date", "time", "uuid", "ipv4"))),
    st.builds(lambda value: {"const": value}, _VALUES),
    st.builds(lambda values: {"enum": values}, st.lists(_VALUES, min_size=1, max_size=5)),
)


@st.composite
def _objects(draw: Any, inner: Any) -> Any:
    properties = draw(st.dictionaries(_NAMES, inner, max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    schema = {"type": "object", "properties": properties, "required": required}
    if draw(st.booleans()):
        schema["additionalProperties"] = draw(st.just(False) | inner)
    return schema


def _lists(inner: Any) -> Any:
    bounded = _between(0, 1, ("minItems", "maxItems"), most=3)
    return st.builds(lambda items, bounds: {"type": "array", "items": items, **bounds}, inner, bounded)


def _alternatives(inner: Any) -> Any:
    return st.builds(lambda schemas: {"anyOf": schemas}, st.lists(inner, min_size=1, max_size=3))


def schemas() -> Any:
    """Schemas that have instances, and that a grammar can follow."""
    return st.recursive(
        _LEAVES, lambda inner: st.one_of(_objects(inner), _lists(inner), _alternatives(inner)), max_leaves=8
    )


def some(count: int) -> list[Any]:
    """So many different ones, the same with each call."""
    found: dict[str, Any] = {}

    @settings(max_examples=3 * count, database=None, derandomize=True, deadline=None, phases=[Phase.generate])
    @given(schemas())
    def draw(schema: Any) -> None:
        found.setdefault(json.dumps(schema, sort_keys=True), schema)

    draw()
    return list(found.values())[:count]
