"""Log probabilities on their way from heads to the API: with their ids, the prompt's once, and exact whatever befell the request."""

import pytest

from cluster.serving.requests import Delta, GenerationRequest, Likelihood, PromptScored, Scored, TextPrompt
from protocol.errors import ContextTooLong
from protocol.messages import PrefillProgress, PromptLogprobs
from protocol.values import Sampling, TokenLogprobs
from tests.support.fake_cluster import (
    CONTEXT_TOKENS,
    Client,
    FakeCluster,
    plan_of,
    service_of,
    settle,
    tokens_request,
)
from tests.support.virtual_time import run

TOLD = Sampling(logprobs=1)


def text(words):
    return GenerationRequest(prompt=TextPrompt(words, bare=True))


def likely(number):
    return TokenLogprobs(-float(number), ((20, -0.5),))


def events_of(prompts, request, play, **plan):
    """What a request gives while `play(cluster)` is what heads do."""

    async def scenario():
        cluster = FakeCluster(plan_of(**plan))
        client = Client(service_of(prompts, cluster), request)
        await client.routed()
        for _ in play(cluster):
            await settle()
        await client.task
        return client, cluster

    return run(scenario())


def numbers(scores):
    return [score.chosen.logprob for score in scores]


def of_prompt(sequence, start, *told):
    return PromptLogprobs(sequence=sequence, start=start, entries=tuple(map(likely, told)))


def test_each_id_of_an_answer_has_its_own_and_the_likeliest_with_their_texts(prompts):
    first, second = 20, 30
    told = [TokenLogprobs(-1.5, ((second, -0.5), (first, -1.5))), TokenLogprobs(-0.25)]

    def play(cluster):
        yield cluster.report(1, (first, second), "length", told)

    client, _ = events_of(prompts, tokens_request(max_tokens=2, sampling=Sampling(logprobs=2)), play)
    (delta,) = client.of(Delta)
    texts = {token: prompts.text_of(token) for token in (first, second)}
    assert delta.token_ids == (first, second)
    assert delta.scores == (
        Scored(
            Likelihood(first, texts[first], -1.5),
            (Likelihood(second, texts[second], -0.5), Likelihood(first, texts[first], -1.5)),
        ),
        Scored(Likelihood(second, texts[second], -0.25)),
    )
    assert not client.of(PromptScored)


def test_ids_whose_text_is_held_back_have_theirs_at_once(prompts):
    ids = prompts.encode(text("é"))

    def play(cluster):
        for number, token in enumerate(ids):
            yield cluster.report(1, (token,), None, [likely(number)])
        yield cluster.report(1, (20,), "length", [likely(9)])

    client, _ = events_of(prompts, tokens_request(stop=("é!",), sampling=TOLD), play)
    assert [(len(delta.token_ids), numbers(delta.scores)) for delta in client.of(Delta)] == [
        *((1, [-float(number)]) for number in range(len(ids))),
        (1, [-9.0]),
    ]
    assert client.of(Delta)[0].text == ""


@pytest.mark.parametrize("together", [True, False])
def test_end_token_has_its_own_behind_those_of_the_ids(prompts, together):
    """It is no id of the answer, but whoever asks for one more token than a prompt counts on one."""

    def play(cluster):
        if together:
            yield cluster.report(1, (21, 3), "stop", [likely(1), likely(2)])
        else:
            yield cluster.report(1, (21,), None, [likely(1)])
            yield cluster.report(1, (3,), "stop", [likely(2)])

    client, _ = events_of(prompts, tokens_request(sampling=TOLD), play)
    deltas = client.of(Delta)
    assert [number for delta in deltas for number in numbers(delta.scores)] == [-1.0, -2.0]
    assert [token for delta in deltas for token in delta.token_ids] == [21]


def test_what_lies_behind_a_stop_string_has_none(prompts):
    ids = prompts.encode(text("the cat sat on the mat"))

    def play(cluster):
        yield cluster.report(1, ids, None, map(likely, range(len(ids))))

    client, _ = events_of(prompts, tokens_request(stop=("sat",), sampling=TOLD, max_tokens=50), play)
    assert 0 < len(client.ids) < len(ids)
    assert [numbers(delta.scores) for delta in client.of(Delta)] == [[-float(n) for n in range(len(client.ids))]]


def test_prompt_is_told_of_once_and_before_the_answer(prompts):
    def play(cluster):
        yield cluster.listener.progress(PrefillProgress(sequence=1, processed=3, total=5))
        yield cluster.listener.progress(of_prompt(1, 1, 1, 2))
        yield cluster.listener.progress(of_prompt(1, 3, 3, 4))
        yield cluster.report(1, (21,), "length", [likely(5)])

    client, cluster = events_of(prompts, tokens_request(5, max_tokens=1, scores_prompt=True, sampling=TOLD), play)
    assert cluster.generates()[0][1].scores_prompt
    kinds = [type(event) for event in client.events if isinstance(event, PromptScored | Delta)]
    assert kinds == [PromptScored, Delta]
    (told,) = client.of(PromptScored)
    assert numbers(told.scores) == [None, -1.0, -2.0, -3.0, -4.0]
    assert [score.chosen.token for score in told.scores] == [20] * 5
    assert [len(score.top) for score in told.scores] == [0, 1, 1, 1, 1]
    assert numbers(client.of(Delta)[0].scores) == [-5.0]


def test_prompt_of_one_token_has_nothing_to_compute(prompts):
    def play(cluster):
        yield cluster.report(1, (21,), "length")

    client, cluster = events_of(prompts, tokens_request(1, max_tokens=1, scores_prompt=True), play)
    assert not cluster.generates()[0][1].scores_prompt
    assert [numbers(told.scores) for told in client.of(PromptScored)] == [[None]]
    assert client.of(Delta)[0].scores == ()


@pytest.mark.parametrize("told_before", [0, 1, 3, 4])
def test_prompt_whose_plan_was_lost_is_told_of_once_and_completely(prompts, told_before):
    def play(cluster):
        if told_before:
            yield cluster.listener.progress(of_prompt(1, 1, *range(1, told_before + 1)))
        yield cluster.replan("gamma")
        again = cluster.generates()[-1][1]
        assert again.scores_prompt == (told_before < 4)
        if again.scores_prompt:
            yield cluster.listener.progress(of_prompt(2, 1, 1, 2))
            yield cluster.listener.progress(of_prompt(2, 3, 3, 4))
        yield cluster.report(2, (21,), None, [likely(5)])
        yield cluster.replan()
        assert not cluster.generates()[-1][1].scores_prompt
        yield cluster.report(3, (22,), "length", [likely(6)])

    request = tokens_request(5, strategy="distributed-cached", max_tokens=2, scores_prompt=True, sampling=TOLD)
    client, _ = events_of(prompts, request, play)
    assert [numbers(told.scores) for told in client.of(PromptScored)] == [[None, -1.0, -2.0, -3.0, -4.0]]
    assert [numbers(delta.scores) for delta in client.of(Delta)] == [[-5.0], [-6.0]]
    assert client.finished.resumed == 2


def scored_alone(prompts, count, reason="length", **plan):
    def play(cluster):
        yield cluster.listener.progress(of_prompt(1, 1, *range(1, count)))
        yield cluster.report(1, (21,), reason)

    return events_of(prompts, tokens_request(count, max_tokens=0, scores_prompt=True), play, **plan)


@pytest.mark.parametrize("reason", ["length", "stop"])
def test_nothing_is_generated_where_only_the_prompt_is_asked_about(prompts, reason):
    client, cluster = scored_alone(prompts, 3, reason)
    assert cluster.generates()[0][1].max_tokens == 1  # whose step tells of the prompt's last token
    assert [numbers(told.scores) for told in client.of(PromptScored)] == [[None, -1.0, -2.0]]
    assert (client.of(Delta), client.text) == ([], "")
    finished = client.finished
    assert (finished.finish_reason, finished.completion_tokens, finished.token_ids) == ("length", 0, ())
    assert finished.prompt_tokens == 3


def test_prompt_that_is_only_asked_about_may_fill_the_context(prompts):
    client, _ = scored_alone(prompts, CONTEXT_TOKENS)
    assert len(client.of(PromptScored)[0].scores) == CONTEXT_TOKENS
    assert client.finished.notes == ()
    with pytest.raises(ContextTooLong, match="shorten it"):
        scored_alone(prompts, CONTEXT_TOKENS + 1)


def test_model_s_own_sampling_leaves_what_was_asked_to_be_told():
    asked = tokens_request(sampling=Sampling(logprobs=3), given=frozenset())
    assert asked.with_defaults(Sampling(temperature=0.7)).sampling == Sampling(temperature=0.7, logprobs=3)
