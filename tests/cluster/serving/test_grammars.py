"""What an answer is to be becomes a grammar, in a process of its own, or is refused by what of it is not supported."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from cluster.serving.answer import Answer
from cluster.serving.grammars import GrammarRefused, compile_grammar, tokens_of
from cluster.serving.grammars_apart import GrammarsApart
from cluster.serving.held_answers import HeldParts
from cluster.serving.prompts import Prompts
from cluster.serving.requests import ChatPrompt, ForcedCall, GenerationRequest, Structure, TextPrompt
from protocol.errors import BadRequest
from protocol.messages import Update
from tests.cluster.serving.test_parts import MARKS, TEMPLATE, USER
from tests.support.tiny_tokenizer import write_tokenizer

CHECKOUT = Path(__file__).resolve().parents[3]
END = 1
WEATHER = {"weather": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}


def it(kind, source):
    return Structure(kind=kind, source=source if type(source) is str else json.dumps(source), field="it")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("model"), template=TEMPLATE, marks=MARKS)


@pytest.fixture(scope="module")
def prompts(model):
    return Prompts.load(model)


@pytest.fixture(autouse=True)
def busy_machine(monkeypatch):
    """Where it is not what is tested, time is no limit."""
    monkeypatch.setattr("cluster.serving.grammars_apart.LIMIT_S", 60.0)


@pytest.fixture(scope="module")
def apart(model):
    with closing(GrammarsApart(model, CHECKOUT)) as grammars:
        yield grammars


@pytest.mark.parametrize(
    ("kind", "source", "why"),
    [
        ("json", {"not": {}}, "not"),
        ("json", {"uniqueItems": True}, "uniqueItems"),
        ("json", {"type": "nothing"}, "nothing"),
        ("json", {"type": "string", "format": "odd"}, "odd"),
        ("json", {"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
        ("json", {"$ref": "http://elsewhere/schema"}, "elsewhere"),
        ("json", {"type": "object", "minProperties": 2}, "minProperties 2"),
        ("json", {"items": {"multipleOf": 0.1}}, "multipleOf 0.1"),
        ("json", {"const": [1e300]}, "1e\\+300"),
        ("json", {"uniqueItems": True, "x-guidance": {"lenient": True}}, "uniqueItems"),
        ("regex", "[", "unclosed"),
        ("regex", "(?=a)b", "look-around"),
        ("grammar", "root ::= nothing", "nothing"),
        ("grammar", "root ::= " + "(" * 9000, "nothing|recursion|Expected|line"),
        ("calls", {"x": {"type": "object", "not": {}}}, "not"),
        ("calls", {"x": 5}, "is an object"),
        ("calls", {"x": {}, "nobody": None}, "'nobody' is not among the tools"),
        ("calls", {}, "there are no tools"),
        ("json", "{", "truncated"),
        ("json", "5", "is an object"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_what_it_is(model, kind, source, why):
    with pytest.raises(GrammarRefused, match=why):
        compile_grammar(it(kind, source), tokens_of(model))


def test_process_gives_what_this_one_would_and_remembers_it(model, apart):
    for structure in (it("json", WEATHER["weather"]), it("calls", WEATHER), it("choice", ["a", "b"])):
        assert apart.compile(structure) == compile_grammar(structure, tokens_of(model)) == apart.compile(structure)
    with pytest.raises(GrammarRefused, match="not"):
        apart.compile(it("json", {"not": {}}))


def test_what_takes_too_long_is_refused_and_the_next_is_compiled(apart, monkeypatch):
    assert apart.compile(it("regex", "a+"))
    with monkeypatch.context() as patch:
        patch.setattr("cluster.serving.grammars_apart.LIMIT_S", 0.2)
        with pytest.raises(GrammarRefused, match=r"takes longer than 0\.2 s"):
            apart.compile(it("regex", "((a{1000}){1000}){1000}"))
    assert apart.compile(it("regex", "b+"))


def test_closed_one_compiles_nothing_any_more(model):
    grammars = GrammarsApart(model, CHECKOUT)
    grammars.close()
    with pytest.raises(GrammarRefused, match="stopping"):
        grammars.compile(it("regex", "a"))


def asked(structure, *, thinks=False, forced=None, **fields):
    prompt = ChatPrompt((USER,), options={"enable_thinking": thinks}, forced=forced)
    return GenerationRequest(prompt=prompt, structure=structure, **fields)


def constrained(prompts, request):
    return prompts.constrained(request, prompts.encode(request))


def test_grammar_begins_behind_the_thoughts_of_a_model_that_begins_with_them(prompts):
    for thinks in (False, True):
        found = constrained(prompts, asked(it("regex", "a+"), thinks=thinks)).sampling.grammar
        assert found.after == (
            tuple(prompts.encode(GenerationRequest(prompt=TextPrompt("</think>")))[1:]) if thinks else ()
        )


def test_refusal_names_the_field(prompts):
    with pytest.raises(BadRequest, match="it cannot be followed: Unimplemented keys") as caught:
        constrained(prompts, asked(it("json", {"not": {}})))
    assert caught.value.param == "it"


def test_model_without_a_tokenizer_file_cannot_be_held_to_anything(tmp_path):
    with pytest.raises(GrammarRefused, match=r"no tokenizer\.json"):
        compile_grammar(it("regex", "a"), tokens_of(tmp_path))


# --- the answer


def taken_apart(prompts, text, request, reason="stop", size=1):
    """What is said, thought and called in an answer of that text, and how it finished."""
    request = constrained(prompts, request)
    tokens = prompts.encode(GenerationRequest(prompt=TextPrompt(text)))[1:]
    answer = Answer(prompts.stream(request, prompts.encode(request)), prompt_tokens=1, arrival=0.0)
    events = []
    for at in range(0, len(tokens), size):
        events += answer.take([Update(1, tuple(tokens[at : at + size]))], 1.0)
    *deltas, finished = [*events, *answer.take([Update(1, (3,) if reason == "stop" else (), reason)], 2.0)]
    assert tuple(token for delta in deltas for token in delta.token_ids) == tuple(tokens)
    said, thought = ("".join(getattr(delta, what) for delta in deltas) for what in ("text", "reasoning"))
    calls = [(call.name, call.arguments) for delta in deltas for call in delta.calls]
    return said, thought, calls, finished.finish_reason


MARKED = '{"a":"<tool_call><think>x</think>"}'


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_marks_in_what_is_said_are_what_is_said(prompts, size):
    held = it("json", {"type": "object"})
    assert taken_apart(prompts, MARKED, asked(held), size=size) == (MARKED, "", [], "stop")
    thought = "hm </thi <x"
    text = f"{thought}</think>{MARKED}"
    assert taken_apart(prompts, text, asked(held, thinks=True), size=size) == (MARKED, thought, [], "stop")
    assert taken_apart(prompts, "hm </th", asked(held, thinks=True), "length") == ("", "hm </th", [], "length")


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize("thinks", [False, True])
def test_forced_call_is_one_and_ends_as_its_caller_expects(prompts, size, thinks):
    text = ("so</think>" if thinks else "") + '{"name": "weather", "arguments": {"city": "Köln}"}}'
    for reason in ("stop", "tool_calls"):
        request = asked(it("calls", WEATHER), thinks=thinks, forced=ForcedCall(("clock", "weather"), reason))
        expected = ("", "so" if thinks else "", [("weather", '{"city": "Köln}"}')], reason)
        assert taken_apart(prompts, text, request, size=size) == expected


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "weather", "arguments": {"city": "K', [("weather", '{"city": "K')]),
        ('{"name": "weather", "arguments": {"city": "K"}', [("weather", '{"city": "K"}')]),
        ('{"name": "wea', []),
    ],
)
def test_forced_call_that_was_cut_is_what_there_is_of_it(prompts, text, calls):
    request = asked(it("calls", WEATHER), forced=ForcedCall(("weather",)))
    assert taken_apart(prompts, text, request, "length") == ("", "", calls, "length")


def test_answer_that_is_held_to_text_alone_needs_no_taking_apart(prompts):
    request = constrained(prompts, asked(it("regex", "a+")))
    assert prompts.stream(request, prompts.encode(request)).parts is None
    assert HeldParts("", ForcedCall(("x",))).finish() == []
