"""What a head makes of log probabilities: told on in order, and a step that comes back without those it asked for fails."""

import math

import pytest

from protocol.messages import Generate, OpenSequence, PromptLogprobs, Sampled, SequenceFailed, Tokens, Update
from protocol.values import MAX_TOP_LOGPROBS, Sampling, TokenLogprobs
from strategy.prefix import BLOCK_TOKENS, PrefixDirectory
from tests.workers.engine.test_head import END, ROUTE, Played
from workers.engine.checks import Checks
from workers.engine.fitness import UnfitMessage
from workers.model.stage_loading import LoadedStages

ONE = TokenLogprobs(-0.5)
VOCABULARY = 400


def told(*numbers):
    return tuple(TokenLogprobs(-float(number)) for number in numbers)


def begin(played, sequence, prompt, *, logprobs=None, scores_prompt=True, cached=True):
    request = Generate(
        sequence=sequence,
        route=ROUTE,
        cached=cached,
        max_tokens=3,
        end_tokens=(END,),
        sampling=Sampling(logprobs=logprobs),
        seed=7,
        scores_prompt=scores_prompt,
    )
    played.do(played.head.begin(request, list(prompt)))


def answer(played, *tokens, logprobs=(), scored=()):
    step, _ = played.issue()
    answered = Sampled(
        number=step.number, route=ROUTE, tokens=tuple((token,) for token in tokens), logprobs=logprobs, scored=scored
    )
    played.do(played.head.sampled(answered, played.now))


def test_prompt_is_told_of_chunk_by_chunk_and_before_its_first_token():
    played = Played(chunk_tokens=4)
    begin(played, 1, range(10, 20), logprobs=0)
    assert [opened.scores_prompt for opened in played.forwarded if isinstance(opened, OpenSequence)] == [True]
    answer(played, scored=(told(1, 2, 3),))
    answer(played, scored=(told(4, 5, 6, 7),))
    answer(played, scored=(told(8),))
    answer(played, 77, logprobs=(ONE,), scored=(told(9),))
    answer(played, 78, logprobs=(ONE,))
    assert played.reported == [
        PromptLogprobs(sequence=1, start=1, entries=told(1, 2, 3)),
        PromptLogprobs(sequence=1, start=4, entries=told(4, 5, 6, 7)),
        PromptLogprobs(sequence=1, start=8, entries=told(8)),
        PromptLogprobs(sequence=1, start=9, entries=told(9)),
        Tokens(updates=(Update(1, (77,), None, (ONE,)),)),
        Tokens(updates=(Update(1, (78,), None, (ONE,)),)),
    ]


def test_prompt_without_a_cache_is_told_of_with_its_first_token_alone():
    played = Played()
    begin(played, 1, range(10, 14), cached=False)
    answer(played, 77, scored=(told(1, 2, 3),))
    answer(played, 78)
    assert [type(message) for message in played.reported] == [PromptLogprobs, Tokens, Tokens]


def test_end_token_has_its_own():
    played = Played()
    begin(played, 1, [10], logprobs=2)
    answer(played, END, logprobs=(ONE,))
    assert played.updates() == [Update(1, (END,), "stop", (ONE,))]


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": (TokenLogprobs(-0.5, ((VOCABULARY, -0.5),)),)},
        {"logprobs": (TokenLogprobs(-0.5, ((-1, -0.5),)),)},
        {"logprobs": (TokenLogprobs(math.nan),)},
        {"logprobs": (ONE, ONE)},
        {"scored": ((TokenLogprobs(-0.5, ((1, -math.inf),)),),)},
        {"scored": ((TokenLogprobs(-0.5, ((1, -0.5),) * (MAX_TOP_LOGPROBS + 1)),),)},
    ],
    ids=["beyond the vocabulary", "before it", "no number", "more than ids", "without end", "too many"],
)
def test_log_probabilities_that_are_none_do_not_enter(fields):
    stages = LoadedStages(executors={ROUTE: None}, vocabulary_size=VOCABULARY)
    checks = Checks("alpha", lambda: stages)
    fitting = TokenLogprobs(-0.5, ((VOCABULARY - 1, -0.5),) * MAX_TOP_LOGPROBS)
    checks.check(Sampled(number=1, route=ROUTE, tokens=((5,),), logprobs=(fitting,), scored=((), (fitting, ONE))), ())
    with pytest.raises(UnfitMessage):
        checks.check(Sampled(number=1, route=ROUTE, tokens=((5,),), **fields), ())


@pytest.mark.parametrize(
    "scored", [(), (told(1, 2),), (told(1, 2, 3, 4),), (told(1, 2, 3), ())], ids=["none", "fewer", "more", "rows"]
)
def test_step_that_tells_of_other_tokens_than_it_has_fails(scored):
    played = Played(chunk_tokens=4)
    begin(played, 1, range(10, 20))
    answer(played, scored=scored)
    (failed,) = played.reported
    assert isinstance(failed, SequenceFailed)
    assert failed.message.startswith("beta told log probabilities of")


def test_step_that_tells_nothing_of_what_it_sampled_fails_where_that_was_asked_for():
    played = Played()
    begin(played, 1, [10], logprobs=0, scores_prompt=False)
    answer(played, 77)
    (failed,) = played.reported
    assert failed == SequenceFailed(sequence=1, message="beta did not tell the log probabilities of what it sampled")


def test_step_of_a_sequence_that_has_left_is_not_asked_what_it_tells():
    played = Played(chunk_tokens=4)
    begin(played, 1, range(10, 20))
    step, _ = played.issue()
    played.cancel(1)
    played.sampled(step)
    assert played.reported == []


def test_nothing_that_is_kept_of_a_prompt_that_is_told_of_is_of_use():
    prefixes = PrefixDirectory(capacity=10, snapshots=False)
    played = Played(chunk_tokens=BLOCK_TOKENS, prefixes=prefixes)
    prompt = range(10, 10 + 2 * BLOCK_TOKENS)
    played.begin(1, prompt, max_tokens=1)
    for tokens in ((), (), (77,)):
        played.answer(*tokens)
    played.reported.clear()
    begin(played, 2, prompt)
    assert played.forwarded[-1].computed_tokens == 0
    played.begin(3, prompt)
    assert played.forwarded[-1].computed_tokens == BLOCK_TOKENS
