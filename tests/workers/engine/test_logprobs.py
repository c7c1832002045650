"""From logits to log probabilities: whatever is asked for beside, of whatever numbers, and always finite."""

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest

from protocol.messages import Row, Step
from protocol.values import NO_CHANCE, Route, Sampling
from workers.engine.logprobs import PromptScores, of_sampled
from workers.engine.sampling import SamplingPlace, TokenSampler

VOCABULARY = 50
LOGITS = np.random.default_rng(0).normal(size=(700, VOCABULARY)).astype(np.float32)
IDS = np.random.default_rng(1).integers(0, VOCABULARY, 700).tolist()


def of(logits, sampling, token=3):
    """What is told of a token sampled from logits (V,)."""
    unread = of_sampled(
        [SamplingPlace(TokenSampler(sampling, 0, (1, 1, 2)), 3)], mx.array(logits)[None], mx.array([token])
    )
    (found,) = unread.read()
    return found


def rows(logits):
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_nobody_who_asks_for_nothing_is_told_anything():
    assert (
        of_sampled([SamplingPlace(TokenSampler(Sampling(), 0, ()), 0)] * 2, mx.array(LOGITS[:2]), mx.array([1, 2]))
        is None
    )


@pytest.mark.parametrize("num_top", [0, 1, 5, VOCABULARY, 2 * VOCABULARY])
def test_likeliest_are_told_best_first_as_many_as_there_are(num_top):
    found = of(LOGITS[0], Sampling(logprobs=num_top))
    expected = rows(LOGITS[0])
    ranked = np.argsort(-expected)[:num_top].tolist()
    assert found.logprob == pytest.approx(expected[3], abs=1e-5)
    assert [token for token, _ in found.top] == ranked
    assert [logprob for _, logprob in found.top] == pytest.approx(expected[ranked].tolist(), abs=1e-5)


def test_what_cannot_be_is_not_among_the_likeliest_and_still_a_number():
    logits = np.full(VOCABULARY, -np.inf, np.float32)
    logits[[7, 9]] = 0.0, 1.0
    found = of(logits, Sampling(logprobs=5))
    assert found.logprob == NO_CHANCE
    assert [token for token, _ in found.top] == [9, 7]
    assert of(np.full(VOCABULARY, np.nan, np.float32), Sampling(logprobs=5)) == (type(found))(NO_CHANCE)


def test_half_precision_is_normalized_in_full():
    logits = mx.array(LOGITS[0]).astype(mx.bfloat16)
    found = of(logits, Sampling(logprobs=VOCABULARY))
    exact = rows(np.array(logits.astype(mx.float32)))
    assert found.logprob == pytest.approx(exact[3], abs=1e-5)
    assert sum(np.exp([logprob for _, logprob in found.top])) == pytest.approx(1.0, abs=1e-5)


def test_penalties_and_biases_count_and_temperature_does_not():
    biased = LOGITS[0].copy()
    biased[4] += 2.0
    assert of(LOGITS[0], Sampling(logprobs=0, logit_bias={4: 2.0}, temperature=0.3)).logprob == pytest.approx(
        rows(biased)[3], abs=1e-5
    )


def step(*spans):
    """Of rows with equal numbers of tokens, (sequence, start, num_sampled)."""
    plan = tuple(Row(sequence, start, num_sampled) for sequence, start, num_sampled in spans)
    return Step(number=1, route=Route(("w",)), slot=None, cached=True, rows=plan, num_tokens=1)


def scored(scores, sequence, start, end, *, num_sampled=0):
    told = scores.of(
        step((sequence, start, num_sampled)), mx.array([IDS[start:end]]), mx.array(LOGITS[None, start:end])
    )
    (found,) = told.read_scored()
    return [score.logprob for score in found]


@pytest.mark.parametrize("bounds", [(0, 699), (0, 1, 2, 400, 699), (0, 256, 512, 699), (0, 257, 698, 699)])
def test_prompt_s_tokens_are_told_of_by_the_logits_before_each_wherever_it_is_cut(bounds):
    scores = PromptScores()
    scores.open(1, Sampling())
    found = [each for start, end in pairwise(bounds) for each in scored(scores, 1, start, end)]
    found += scored(scores, 1, 699, 700, num_sampled=1)
    expected = rows(LOGITS)[np.arange(699), IDS[1:]]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)
    assert not scores.concern(step((1, 700, 1)))


def test_rows_beside_it_are_not_told_of():
    scores = PromptScores()
    scores.open(1, Sampling(logprobs=1))
    first = scores.of(step((2, 0, 1), (1, 0, 0)), mx.array([[5], [6]]), mx.array(LOGITS[:2, None]))
    assert first.read_scored() == ((), ())
    second = scores.of(step((2, 1, 1), (1, 1, 1)), mx.array([[7], [8]]), mx.array(LOGITS[2:4, None]))
    of_other, of_prompt = second.read_scored()
    assert of_other == ()
    assert of_prompt[0].logprob == pytest.approx(rows(LOGITS[1])[8], abs=1e-5)
    assert of_prompt[0].top[0][0] == int(np.argmax(LOGITS[1]))


def test_sequence_that_ended_is_not_told_of():
    scores = PromptScores()
    for end in (lambda: scores.close(1), scores.clear):
        scores.open(1, Sampling())
        assert scores.concern(step((1, 0, 0)))
        end()
        assert not scores.concern(step((1, 0, 0)))
