"""Each check says what it accepts, and accepts just that."""

import importlib
import pkgutil
import re
from decimal import Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import cluster.api
from cluster.api.fields import Check, integer, mapping, number, text
from cluster.api.number_texts import integer_pattern, number_pattern
from cluster.api.schemas import any_of, described, object_schema, schema_of


def tables():
    """Every table of checks of the API, by where it is."""
    for found in pkgutil.walk_packages(cluster.api.__path__, "cluster.api."):
        module = importlib.import_module(found.name)
        for name, kind in module.__annotations__.items():
            if kind == dict[str, Check]:
                yield f"{found.name}.{name}", getattr(module, name)
            if kind == dict[str, dict[str, Check]]:
                yield from ((f"{found.name}.{name}[{key}]", table) for key, table in getattr(module, name).items())


TABLES = dict(tables())


def test_there_are_tables():
    assert {"cluster.api.parameters.COMMON", "cluster.api.surfaces.message_blocks._FIELDS[text]"} < set(TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_each_check_has_a_schema(table):
    for check in TABLES[table].values():
        assert type(schema_of(check)) is dict


def test_check_without_a_schema_works_and_is_not_described():
    def plain(_name, value):
        return value

    with pytest.raises(TypeError, match="plain"):
        object_schema({"a": plain})


def test_fields_may_be_null_unless_they_are_needed():
    schema = object_schema({"a": text(1, 2), "b": text(1, 2)}, ["b"])
    one = {"type": "string", "minLength": 1, "maxLength": 2}
    assert schema["properties"] == {"a": {"anyOf": [one, {"type": "null"}]}, "b": one}
    assert schema["required"] == ["b"]


def test_what_is_one_of_many_is_one_list():
    assert any_of({"enum": [1]}, any_of({"enum": ["a"]}, {"type": "null"})) == {"enum": [1, "a", None]}


def test_checks_are_what_they_were_with_a_schema():
    assert described({"type": "object", "maxProperties": 1})(mapping)("x", {"a": 1}) == {"a": 1}


INTEGERS = [(0, 5), (-2, 2**31 - 1), (1, 100), (-(2**63), 2**64 - 1), (7, 7), (-9, -3), (0, 0), (95, 1234)]


@pytest.mark.parametrize(("low", "high"), INTEGERS)
@given(data=st.data())
def test_text_of_integers_is_known_by_its_range(low, high, data):
    edges = st.sampled_from([low - 1, low, high, high + 1]) | st.integers(-2000, 2000)
    value = data.draw(edges | st.integers(low - 50, high + 50))
    matches = re.fullmatch(integer_pattern(low, high), str(value)) is not None
    assert matches is (low <= value <= high)
    assert (re.fullmatch(integer_pattern(low, high), f"{value}.0") is not None) is matches


NUMBERS = [(0, 2), (0, 1), (0.1, 10), (0.25, 3), (-2, 2), (-100, 100), (1, 86400)]


@pytest.mark.parametrize(("low", "high"), NUMBERS)
@given(data=st.data())
def test_text_of_numbers_is_known_by_its_range(low, high, data):
    span = Decimal(str(high)) - Decimal(str(low))
    value = data.draw(st.decimals(Decimal(str(low)) - span, Decimal(str(high)) + span, places=3))
    value = data.draw(st.sampled_from([value, Decimal(str(low)), Decimal(str(high)), Decimal(round(value))]))
    assume(value or not value.is_signed())  # "-0" is none
    matches = re.fullmatch(number_pattern(low, high), f"{value:f}") is not None
    is_within = Decimal(str(low)) <= value <= high
    assert matches is is_within


@given(st.text(max_size=3) | st.from_regex(r"-?\d{1,3}(\.\d)?", fullmatch=True))
def test_text_that_is_taken_for_a_number_is_one(said):
    for check, kind in ((integer(0, 99), int), (number(0, 99), float)):
        if re.fullmatch(schema_of(check)["anyOf"][1]["pattern"], said):
            assert check("x", said) == kind(float(said))
