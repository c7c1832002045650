"""Answers that are held to a grammar: what a random model says in one is of it, whoever is beside it and wherever it is cut."""

import json
import re

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from benchmarks.support.random_schemas import schemas
from cluster.serving.grammars import compile_grammar, tokens_of
from cluster.serving.requests import Structure
from protocol.values import Grammar, Sampling
from tests.support.drafts import nearly
from tests.support.in_process_cluster import InProcessCluster, alone
from workers.engine.grammar import Constraint, GrammarFailed, Grammars
from workers.zoo import make_tiny_model

PROMPT = [5, 6, 7]
STRATEGIES = ("single-device-cached", "distributed-no-cache", "distributed-cached", "distributed-prefill")
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "s": {"type": "string", "maxLength": 9}},
    "required": ["a", "s"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def end(model):
    return json.loads((model / "config.json").read_text())["eos_token_id"]


@pytest.fixture(scope="module")
def tokenizer(model):
    return Tokenizer.from_file(str(model / "tokenizer.json"))


@pytest.fixture(scope="module", params=[1, 2], ids=["one stage", "two stages"])
def cluster(request, model, tmp_path_factory):
    return InProcessCluster(model, num_stages=request.param, cache_dir=tmp_path_factory.mktemp("cache"))


def grammar(model, source, kind="json", after=()):
    text = source if type(source) is str else json.dumps(source)
    return Grammar(
        text=compile_grammar(Structure(kind=kind, source=text, field="it"), tokens_of(model)), after=tuple(after)
    )


def held(model, source, kind="json", seed=0, **sampling):
    return Sampling(temperature=1.0, seed=seed, grammar=grammar(model, source, kind), **sampling)


def said(cluster, tokenizer, number, end):
    """The text of an answer that ended by itself."""
    *tokens, last = cluster.tokens[number]
    assert (cluster.finish_reasons[number], last) == ("stop", end)
    assert end not in tokens
    return tokenizer.decode(tokens, skip_special_tokens=False)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(asked=st.lists(schemas(), min_size=2, max_size=3), seed=st.integers(0, 1000))
def test_whatever_the_schema_a_finished_answer_is_of_it(cluster, model, tokenizer, end, asked, seed):
    numbers = [
        cluster.generate(PROMPT, 80, sampling=held(model, schema, seed=seed + place), end_tokens=(end,))
        for place, schema in enumerate(asked)
    ]
    cluster.run()
    cluster.assert_nothing_is_left()
    assert not any(number in cluster.failures for number in numbers), cluster.failures
    for number, schema in zip(numbers, asked, strict=True):
        if cluster.finish_reasons[number] == "stop":
            jsonschema.validate(json.loads(said(cluster, tokenizer, number, end)), schema)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rows_with_and_without_a_grammar_share_a_batch(cluster, model, tokenizer, end, strategy):
    if strategy == "distributed-prefill" and len(cluster.names) == 1:
        pytest.skip("there is nobody to read for")
    free = cluster.generate(PROMPT, 30, strategy=strategy, end_tokens=(end,))
    numbers = [
        cluster.generate(PROMPT, 150, strategy=strategy, sampling=held(model, SCHEMA, seed=seed), end_tokens=(end,))
        for seed in range(3)
    ]
    cluster.run()
    cluster.assert_nothing_is_left()
    assert cluster.tokens[free] == alone(model, PROMPT, 30, end_tokens=(end,))
    found = [said(cluster, tokenizer, number, end) for number in numbers]
    for text in found:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("kind", "source", "pattern"),
    [
        ("regex", "^[a-c]{2,4}-[0-9]+x$", r"[a-c]{2,4}-[0-9]+x"),
        ("choice", ["yes", "no", 'per"haps\n'], r'yes|no|per"haps\n'),
        ("grammar", 'root ::= "a" [0-9]+ ("," [0-9]+)* "z"', r"a[0-9]+(,[0-9]+)*z"),
        ("grammar", 'start: "a" NUMBER\nNUMBER: /[0-9]{3}/', r"a[0-9]{3}"),
    ],
    ids=["regex", "choice", "GBNF", "Lark"],
)
def test_expressions_choices_and_grammars_are_followed(cluster, model, tokenizer, end, kind, source, pattern):
    numbers = [
        cluster.generate(PROMPT, 200, sampling=held(model, source, kind, seed=seed), end_tokens=(end,))
        for seed in range(3)
    ]
    cluster.run()
    for number in numbers:
        assert re.fullmatch(pattern, said(cluster, tokenizer, number, end))


@pytest.fixture(scope="module")
def guessing(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guesses")
    return InProcessCluster(model, num_stages=2, cache_dir=folder / "cache", draft=nearly(model, folder / "draft"))


@pytest.mark.parametrize("strategy", STRATEGIES[:3])
@pytest.mark.parametrize(
    "asked",
    [
        ("json", SCHEMA, {}),
        ("regex", "[a-c]{2,4}-[0-9]{9}x", {"logprobs": 1, "repetition_penalty": 1.2}),
        ("grammar", 'root ::= "a" [0-9]+ ("," [0-9]+)* "z"', {"min_tokens": 12}),
    ],
    ids=["json", "regex", "least"],
)
def test_guesses_change_nothing_of_what_is_held_to_a_grammar(cluster, guessing, model, end, strategy, asked):
    """A draft knows nothing of it, and guesses that are right come from a prediction."""
    kind, source, more = asked
    accepted = 0
    for seed in range(3):
        given = {"strategy": strategy, "sampling": held(model, source, kind, seed=seed, **more), "end_tokens": (end,)}
        expected = cluster.generate(PROMPT, 60, **given)
        cluster.run()
        said = cluster.tokens[expected]
        number = guessing.generate(PROMPT, 60, prediction=[*said[:6], 9, *said[3:]], **given)
        guessing.run()
        assert number not in guessing.failures, guessing.failures[number]
        assert (guessing.tokens[number], guessing.finish_reasons[number]) == (said, cluster.finish_reasons[expected])
        accepted += guessing.accepted[number]
    assert accepted > 0


def test_greedy_answer_takes_the_likeliest_token_that_is_allowed(cluster, model, tokenizer, end):
    greedy = Sampling(grammar=grammar(model, "[0-9]{7}", "regex"))
    penalized = Sampling(grammar=greedy.grammar, repetition_penalty=1.5, logit_bias={end: 50.0})
    numbers = [cluster.generate(PROMPT, 50, sampling=each, end_tokens=(end,)) for each in (greedy, greedy, penalized)]
    cluster.run()
    first, second, third = (said(cluster, tokenizer, number, end) for number in numbers)
    assert first == second
    assert all(re.fullmatch("[0-9]{7}", text) for text in (first, third))


def test_grammar_begins_behind_what_is_thought_which_does_not_end_the_answer(cluster, model, tokenizer, end):
    mark = tokenizer.encode("the").ids
    sampling = Sampling(temperature=1.0, seed=3, grammar=grammar(model, "[0-9]{3}", "regex", after=mark))
    thinks = Sampling(temperature=1.0, seed=3, grammar=sampling.grammar, logit_bias={mark[0]: 3.0, end: 20.0})
    number = cluster.generate(PROMPT, 400, sampling=thinks, end_tokens=(end,))
    cluster.run()
    text = said(cluster, tokenizer, number, end)
    assert len(mark) == 1
    thought, _, answer = text.partition("the")
    assert thought
    assert re.fullmatch("[0-9]{3}", answer)


def test_answer_does_not_end_before_the_least_number_of_tokens(cluster, end):
    wants_to_end = {"logit_bias": {end: 100.0}}
    numbers = [
        cluster.generate(PROMPT, 30, sampling=Sampling(min_tokens=least, **wants_to_end), end_tokens=(end,))
        for least in (0, 1, 10, 30)
    ]
    cluster.run()
    assert [len(cluster.tokens[number]) for number in numbers] == [1, 2, 11, 30]
    assert [cluster.finish_reasons[number] for number in numbers] == ["stop", "stop", "stop", "length"]


def test_grammar_that_is_complete_ends_an_answer_that_should_be_longer(cluster, model, tokenizer, end):
    numbers = [
        cluster.generate(PROMPT, 30, sampling=held(model, source, "regex", min_tokens=8), end_tokens=(end,))
        for source in ("[0-9]{3}", "[0-9]+")
    ]
    cluster.run()
    short, long = (said(cluster, tokenizer, number, end) for number in numbers)
    assert re.fullmatch("[0-9]{3}", short)
    assert len(cluster.tokens[numbers[1]]) > 8
    assert re.fullmatch("[0-9]+", long)


def test_grammar_that_nothing_goes_on_with_fails_its_own_sequence(cluster, model, end):
    stuck = Sampling(temperature=1.0, grammar=Grammar(text='start: "ab" x\nx: x "c"'))
    broken = Sampling(temperature=1.0, grammar=Grammar(text="start: nothing of this name"))
    numbers = [cluster.generate(PROMPT, 30, sampling=each, end_tokens=(end,)) for each in (stuck, broken)]
    free = cluster.generate(PROMPT, 30, end_tokens=(end,))
    cluster.run()
    cluster.assert_nothing_is_left()
    for number in numbers:
        assert cluster.failures.pop(number).startswith("the answer cannot be held to its grammar: ")
    assert cluster.tokens[free] == alone(model, PROMPT, 30, end_tokens=(end,))


# --- one constraint


def constraint(model, end, source, kind="regex", answer=(), after=()):
    held = grammar(model, source, kind, after)
    matcher = Grammars(model / "tokenizer.json", lambda: 320)._matcher(held.text, (end, 5000))
    return Constraint(Sampling(grammar=held), 320, (end, 5000), answer, matcher)


def allowed(constraint):
    row = np.zeros(320, bool)
    constraint.allow(row)
    return set(np.flatnonzero(row).tolist())


def test_answer_that_goes_on_elsewhere_is_where_it_was(model, tokenizer, end):
    ids = tokenizer.encode("12-").ids
    whole, resumed = constraint(model, end, "[0-9]{2}-[a-f]"), constraint(model, end, "[0-9]{2}-[a-f]", answer=ids)
    for token in ids:
        assert token in allowed(whole)
        whole.accept(token)
    letters = {tokenizer.token_to_id(letter) for letter in "abcdef"}
    assert allowed(whole) == allowed(resumed) == letters
    whole.accept(min(letters))
    assert allowed(whole) == {end}
    whole.accept(end)
    whole.accept(17)  # of a step that ran ahead
    assert len(allowed(whole)) == 320
    assert whole.failure is None


def test_thoughts_that_go_on_elsewhere_are_still_thoughts(model, tokenizer, end):
    mark = tokenizer.encode("ab").ids
    for answer, is_thinking in (((9, 10), True), ((9, *mark[:-1]), True), ((9, *mark), False)):
        row = allowed(constraint(model, end, "x", answer=answer, after=mark))
        assert row == (set(range(320)) - {end} if is_thinking else {tokenizer.token_to_id("x")})


def test_token_that_is_not_of_the_grammar_fails_the_sequence(model, tokenizer, end):
    found = constraint(model, end, "[0-9]", answer=tokenizer.encode("z").ids)
    assert len(allowed(found)) == 320
    assert "what came is none of it" in found.failure


def test_compiled_grammars_are_kept_and_the_oldest_goes_first(model, end, monkeypatch):
    monkeypatch.setattr("workers.engine.grammar._MOST_KEPT", 2)
    grammars = Grammars(model / "tokenizer.json", lambda: 320)
    texts = [grammar(model, "x" * count, "regex").text for count in (1, 2, 3)]
    for text in (*texts[:2], texts[0], texts[2]):
        assert not grammars._matcher(text, (end,)).result().is_error()
    assert [text for text, _ in grammars._compiled] == [texts[0], texts[2]]


def test_model_without_the_file_says_so(tmp_path):
    with pytest.raises(GrammarFailed, match=r"tokenizer\.json cannot be read"):
        Grammars(tmp_path / "tokenizer.json", lambda: 320)._matcher("start: /x/", (1,)).result()


def test_tokenizer_may_know_more_or_fewer_tokens_than_the_model(model, end):
    for size in (300, 320, 400):
        row = np.zeros(size, bool)
        grammars = Grammars(model / "tokenizer.json", lambda size=size: size)
        matcher = grammars._matcher("start: /[a-z]/", (end, 390))
        Constraint(Sampling(grammar=Grammar(text="")), size, (end,), (), matcher).allow(row)
        assert row.sum() == 26
