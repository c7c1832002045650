"""Objects that name their properties have no others; whatever is said by several parts together stays open."""

import json

import pytest

from cluster.serving.closed_schemas import closed

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
SHUT = CITY | {"additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "meant"),
    [
        (CITY, SHUT),
        ({"type": "array", "items": CITY}, {"type": "array", "items": SHUT}),
        ({"anyOf": [CITY, {"type": "null"}]}, {"anyOf": [SHUT, {"type": "null"}]}),
        ({"$ref": "#/$defs/c", "$defs": {"c": CITY}}, {"$ref": "#/$defs/c", "$defs": {"c": SHUT}}),
        ({"type": "object", "additionalProperties": CITY}, {"type": "object", "additionalProperties": SHUT}),
        ({"properties": {"properties": CITY}}, {"properties": {"properties": SHUT}, "additionalProperties": False}),
    ],
)
def test_object_that_names_its_properties_has_no_others(schema, meant):
    before = json.dumps(schema)
    assert closed(schema) == meant
    assert json.dumps(schema) == before


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        CITY | {"additionalProperties": True},
        CITY | {"patternProperties": {"^x": {"type": "string"}}},
        CITY | {"unevaluatedProperties": False},
        CITY | {"required": ["country"]},
        CITY | {"minProperties": 2},
        CITY | {"anyOf": [{"properties": {"country": {"type": "string"}}}]},
        {"allOf": [{"$ref": "#/$defs/c"}, {"properties": {"x": {}}}], "$defs": {"c": CITY}},
        {"enum": [CITY]},
    ],
)
def test_what_says_otherwise_or_is_said_by_several_parts_stays_as_it_is(schema):
    assert closed(schema) == schema
