"""The document of the API: it names what there is, and says of it what is so."""

import json
import re

import msgspec
import pytest
from jsonschema import Draft202012Validator

from cluster.api import trace_route
from cluster.api.document.building import Known, document
from cluster.api.document.operations import operations
from cluster.api.keys import OPEN_PATHS
from cluster.api.surfaces import SURFACES
from cluster.serving.requests import Delta, ToolCall
from cluster.serving.trace_events import TraceEvents
from protocol.errors import QueueFull, Unavailable
from strategy.decision import Verdict
from strategy.situation import Strategy
from tests.support.fake_service import EXPLANATION, FINISHED, MODEL, ROUTED, FakeService, app_over, ask

DOCUMENT = document(Known(vocabulary_size=2048))


def described():
    """Each path that the document has, with its methods."""
    return {path: {method.upper() for method in methods} for path, methods in DOCUMENT["paths"].items()}


def routed():
    """Each path that the app has, with its methods, but for what only the dashboard's page asks; every GET answers HEAD too."""
    paths = {}
    for route in app_over(FakeService()).routes:
        if route.path.startswith("/dashboard/"):
            continue
        path = re.sub(r":\w+}", "}", route.path)
        paths.setdefault(path, set()).update(route.methods - {"HEAD"})
    return paths


def schemas_in(part):
    if isinstance(part, dict):
        yield part
        part = part.values()
    if not isinstance(part, str) and hasattr(part, "__iter__"):
        for inner in part:
            yield from schemas_in(inner)


def test_document_names_every_route_and_no_other():
    assert described() == routed()


def test_document_is_served_for_the_model_that_is_loaded():
    service = FakeService()
    served = ask(service, "GET", "/openapi.json")
    assert (served.status_code, served.headers["content-type"]) == (200, "application/json")
    assert served.json() == msgspec.json.decode(msgspec.json.encode(document(Known())))


def test_strategies_are_those_that_can_run_now():
    ways = (
        Verdict(strategy=Strategy.TENSOR_PARALLEL, feasible=False, why_not="no"),
        Verdict(strategy=Strategy.DISTRIBUTED_CACHED, feasible=True),
    )

    class Explaining(FakeService):
        async def explain(self, request):
            return msgspec.structs.replace(EXPLANATION, candidates=ways)

    class Starting(FakeService):
        async def explain(self, request):
            raise Unavailable("no plan is in force now")

    def strategies(service):
        return ask(service, "GET", "/openapi.json").json()["components"]["schemas"]["FeasibleStrategy"]["enum"]

    assert strategies(Explaining()) == ["distributed-cached"]
    assert len(strategies(Starting(models=()))) == 5


def test_suffix_is_described_where_the_model_fills_in():
    def suffix(*abilities):
        service = FakeService(models=(msgspec.structs.replace(MODEL, abilities=abilities),))
        return ask(service, "GET", "/openapi.json").json()["components"]["schemas"]["Suffix"]

    assert suffix("tools") == {"enum": [""]}
    assert suffix("insert")["type"] == "string"


def test_each_name_stands_for_something():
    named = DOCUMENT["components"]["schemas"]
    referred = {part["$ref"] for part in schemas_in(DOCUMENT) if "$ref" in part}
    assert {name.removeprefix("#/components/schemas/") for name in referred} <= set(named)


def test_operations_have_names_of_their_own():
    names = [about["operationId"] for methods in DOCUMENT["paths"].values() for about in methods.values()]
    assert len(names) == len(set(names)) == len(list(operations()))


def test_each_surface_says_how_it_is_routed_and_what_it_streams():
    for surface in SURFACES:
        answer = DOCUMENT["paths"][surface.path]["post"]["responses"]["200"]
        assert "X-Tandem-Strategy" in answer["headers"]
        assert set(answer["content"]) == {"application/json", surface.media_type.partition(";")[0]}


def test_key_is_asked_for_everywhere_but_at_open_paths():
    with_key = ask(FakeService(), "GET", "/openapi.json", api_key="k").json()
    assert set(with_key["components"]["securitySchemes"]) == {"bearer", "key"}
    for path, methods in with_key["paths"].items():
        status = ask(FakeService(), "GET", path, api_key="k").status_code
        for about in methods.values():
            assert (about.get("security", with_key["security"]) == []) is (path in OPEN_PATHS) is (status != 401)
            assert ("401" in about["responses"]) is (path not in OPEN_PATHS)


def test_methods_that_a_path_does_not_take_are_answered_with_those_that_it_does():
    for path, methods in described().items():
        refused = ask(FakeService(), "PATCH", path)
        assert refused.status_code == 405
        assert set(refused.headers["allow"].split(", ")) - {"HEAD"} == methods


def test_errors_of_paths_are_in_the_words_of_their_api():
    assert type(ask(FakeService(), "PATCH", "/api/tags").json()["error"]) is str
    assert ask(FakeService(), "PATCH", "/v1/messages/count_tokens").json()["type"] == "error"


def test_page_needs_nothing_from_elsewhere():
    page = ask(FakeService(), "GET", "/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert re.findall(r"https?:|@import|src=|url\(", page.text) == []
    assert re.findall(r'(?:href=|fetch\()"([^"]*)"', page.text) == ["data:,", "openapi.json", "openapi.json"]


def test_page_has_examples_of_bodies_that_there_are():
    page = ask(FakeService(), "GET", "/docs").text
    examples = re.search(r"const EXAMPLES = {(.*?)\n};", page, re.DOTALL)[1]
    assert set(re.findall(r"^  (\w+):", examples, re.MULTILINE)) <= set(DOCUMENT["components"]["schemas"])


@pytest.mark.parametrize("path", ["/openapi.json", "/docs"])
def test_foreign_pages_see_no_document(path):
    assert ask(FakeService(), "GET", path, headers={"origin": "https://example.org"}).status_code == 403


ASKED = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "hi"}]},
    "/api/chat": {"messages": [{"role": "user", "content": "hi"}]},
    "/api/generate": {"prompt": "hi"},
    "/api/show": {},
    "/v1/embeddings": {"input": ["hi", [5, 6]]},
    "/api/embed": {"input": "hi"},
    "/api/embeddings": {"prompt": "hi"},
    "/v1/explain": {"prompt": "hi"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [104]},
    "/v1/cluster/figures": None,
    "/v1/cluster/mend": None,
}
SAID = (
    ROUTED,
    Delta(text="", token_ids=(4,), reasoning="so"),
    Delta(text="Hello", token_ids=(5,)),
    Delta(text="", token_ids=(), calls=(ToolCall(id="call_1", name="weather", arguments='{"city": "Paris"}'),)),
    FINISHED,
)


async def recorded_at_once(*_):
    yield msgspec.json.encode([*TraceEvents(0).begin(), *TraceEvents(0).missed("nothing", 1.0)])


def require_valid(value, schema):
    Draft202012Validator(schema | {"components": DOCUMENT["components"]}).validate(value)


def described_answer(operation, status):
    return DOCUMENT["paths"][operation.path][operation.method]["responses"][str(status)]["content"]


@pytest.mark.parametrize("operation", list(operations()), ids=lambda operation: f"{operation.method} {operation.path}")
def test_answers_are_as_described(operation, monkeypatch):
    monkeypatch.setattr(trace_route, "record", recorded_at_once)
    path = operation.path.format(response_id="resp_1", conversation="c", model_id="tiny", request_id="7")
    body = {"stream": False} | (ASKED[path] or {}) if operation.method == "post" else None
    answer = ask(FakeService(*SAID), operation.method, path, body)
    kind = answer.headers["content-type"].partition(";")[0]
    about = DOCUMENT["paths"][operation.path][operation.method]["responses"][str(answer.status_code)]
    assert {name for name, header in about["headers"].items() if header.get("required")} <= set(
        map(str.title, answer.headers)
    )
    schema = about["content"][kind]["schema"]
    if path == "/status":  # of which the service that plays has but a part
        schema = {"type": "object"}
    require_valid(answer.json() if kind == "application/json" else answer.text, schema)


@pytest.mark.parametrize(
    "operation", [each for each in operations() if each.streamed], ids=lambda operation: operation.path
)
@pytest.mark.parametrize("ending", [FINISHED, Unavailable("the plan was lost")])
def test_what_streams_carry_is_as_described(operation, ending):
    answer = ask(FakeService(*SAID[:-1], ending), "POST", operation.path, ASKED[operation.path] | {"stream": True})
    kind, _ = operation.streamed
    schema = described_answer(operation, 200)[kind]["schema"]
    if kind == "application/x-ndjson":
        pieces = [json.loads(line) for line in answer.text.splitlines()]
        carried = schema["contentSchema"]
    else:
        data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
        pieces = [json.loads(each) for each in data if each != "[DONE]"]
        carried = next(each for each in schema["properties"]["data"]["anyOf"] if "contentSchema" in each)[
            "contentSchema"
        ]
    assert len(pieces) >= 2
    for piece in pieces:
        require_valid(piece, carried)


@pytest.mark.parametrize(
    "operation", [each for each in operations() if each.body], ids=lambda operation: operation.path
)
def test_errors_are_as_described(operation):
    service = FakeService(QueueFull("too many requests wait", retry_after_s=3), models=())
    for answer in (
        ask(service, "POST", operation.path, content=b"["),
        ask(service, "POST", operation.path, ASKED[operation.path]),
        ask(FakeService(), "POST", operation.path, headers={"origin": "https://example.org"}),
        ask(
            FakeService(QueueFull("too many requests wait", retry_after_s=3)),
            "POST",
            operation.path,
            ASKED[operation.path],
        ),
    ):
        if answer.status_code != 200:
            require_valid(answer.json(), described_answer(operation, answer.status_code)["application/json"]["schema"])
