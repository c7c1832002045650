"""What the document says of bodies is so: what is valid by it is taken, what is not is refused."""

import functools
import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, reject, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from cluster.api.document.building import Known, document
from cluster.api.document.operations import operations
from cluster.api.embedding_routes import OllamaEmbed, OllamaEmbeddings, OpenAiEmbeddings
from cluster.api.events import as_json
from cluster.api.explain import parse_explain
from cluster.api.fields import Notes
from cluster.api.ollama_routes import parse_show
from cluster.api.surfaces import SURFACES
from cluster.api.token_routes import parse_detokenize, parse_tokenize
from protocol.errors import BadRequest, NotFound
from tests.cluster.api.test_any_request import any_json

SCHEMAS = json.loads(as_json(document(Known())))["components"]["schemas"]
# What is parsed was decoded, and has no halves of pairs.
ANY_JSON = any_json(st.text(st.characters(codec="utf-8"), max_size=20))
BODIES = sorted({name for operation in operations() for name in operation.body})
# The other half of those that are told apart by a field: what is wrong in one may be right in the other.
OTHERS = {
    name: name.replace("Chat", "Completion") for name in BODIES if name.startswith(("ExplainChat", "TokenizeChat"))
}
OTHERS |= {other: name for name, other in OTHERS.items()}
PARSERS: dict[str, Any] = {
    operation.body[0]: surface.parse
    for operation in operations()
    for surface in SURFACES
    if surface.path == operation.path
}
PARSERS |= {
    "ExplainChatRequest": parse_explain,
    "ExplainCompletionRequest": parse_explain,
    "TokenizeChatRequest": parse_tokenize,
    "TokenizeCompletionRequest": parse_tokenize,
    "DetokenizeRequest": parse_detokenize,
    "OllamaShowRequest": parse_show,
    "EmbeddingRequest": OpenAiEmbeddings().parse,
    "OllamaEmbedRequest": OllamaEmbed().parse,
    "OllamaEmbeddingsRequest": OllamaEmbeddings().parse,
}


def with_components(schema):
    return schema | {"components": {"schemas": SCHEMAS}}


@functools.cache
def validator(name):
    return Draft202012Validator(with_components(SCHEMAS[name]))


def values(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What is valid by a schema, of the words that the document uses."""
    schema = SCHEMAS[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    made = of_any_kind(schema)
    return (
        made.filter(Draft202012Validator(with_components(schema)).is_valid)
        if {"not", "contains"} & set(schema)
        else made
    )


def of_any_kind(schema):
    if "anyOf" in schema:
        return st.one_of([values(each) for each in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if type(kind) is list:
        return st.one_of([values({"type": each}) for each in kind])
    if kind is None:  # of what is no object, properties say nothing
        return objects(schema) | ANY_JSON.filter(lambda value: type(value) is not dict) if schema else ANY_JSON
    return OF_KINDS[kind](schema)


def texts(schema):
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True)
    return st.text(
        st.characters(codec="utf-8"), min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 9), 9)
    )


def lists(schema):
    return st.lists(values(schema.get("items", {})), min_size=schema.get("minItems", 0), max_size=3)


def numbers(schema):
    low, high = schema.get("minimum"), schema.get("maximum")
    whole = st.integers(None if low is None else math.ceil(low), high)
    floats = st.floats(low, high, allow_nan=False, allow_infinity=False)
    return whole | (floats if schema["type"] == "number" else whole.filter(lambda each: abs(each) < 2**53).map(float))


def objects(schema):
    properties, needed = schema.get("properties", {}), schema.get("required", ())
    names = st.lists(st.sampled_from(sorted(properties)), max_size=3) if properties else st.just([])
    described = names.flatmap(
        lambda names: st.fixed_dictionaries({name: values(properties[name]) for name in {*needed, *names}})
    )
    further = schema.get("propertyNames", {})
    name = values({"type": "string", **SCHEMAS.get(further.get("$ref", "").rpartition("/")[2], further)})
    others = st.dictionaries(name, values(schema.get("additionalProperties", {})), max_size=2)
    return st.tuples(others, described).map(lambda both: both[0] | both[1]) if further else described


OF_KINDS = {
    "integer": numbers,
    "number": numbers,
    "string": texts,
    "boolean": lambda _: st.booleans(),
    "null": lambda _: st.none(),
    "array": lists,
    "object": objects,
}


@functools.cache
def right(name, field):
    return values(SCHEMAS[name]["properties"][field])


def is_taken(name, body):
    try:
        PARSERS[name](body, Notes())
    except BadRequest as error:
        note(f"refused: {error}")
        return False
    except NotFound:  # what an id stands for is another question, and it may be asked before all is looked at
        reject()
    return True


def is_described(name, body):
    return any(validator(each).is_valid(body) for each in (name, OTHERS.get(name, name)))


@st.composite
def bodies(draw, name):
    """Mostly right ones: some fields as they are described, one of them perhaps anything."""
    schema = SCHEMAS[name]
    chosen = draw(st.lists(st.sampled_from(sorted(schema["properties"])), max_size=4, unique=True))
    body = {field: draw(right(name, field)) for field in (*schema.get("required", ()), *chosen)}
    if body and draw(st.booleans()):
        body[draw(st.sampled_from(sorted(body)))] = draw(ANY_JSON)
    return body


@pytest.mark.parametrize("name", BODIES)
@given(data=st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_body_is_taken_just_when_it_is_as_described(name, data):
    body = data.draw(bodies(name))
    note(f"{body!r}")
    assert is_taken(name, body) is is_described(name, body)


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name in BODIES for field in SCHEMAS[name].get("required", ())]
)
@given(data=st.data())
@settings(max_examples=5)
def test_what_is_needed_is(name, field, data):
    others = {each: data.draw(right(name, each)) for each in SCHEMAS[name]["required"] if each != field}
    for body in (others, others | {field: None}):
        assert is_taken(name, body) is is_described(name, body)
