"""From logits to tokens: whatever the row and its neighbours, the token of a sequence is its own."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.values import Sampling
from workers.engine.sampling import PENALTY_CONTEXT_TOKENS, SamplingPlace, TokenSampler, mix, sample_places

LOGITS = mx.array(np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32))
SAMPLED = Sampling(temperature=1.0)


def sampler(sampling, seed=0, history=()):
    return TokenSampler(sampling, seed, history)


def token(sampling, logits, seed=0, position=0, history=()):
    return sample_places([SamplingPlace(sampler(sampling, seed, history), position)], logits).item()


def test_greedy_rows_are_the_largest_logits():
    found = sample_places([SamplingPlace(sampler(Sampling()), position) for position in range(4)], LOGITS)
    assert found.tolist() == np.argmax(np.array(LOGITS), axis=-1).tolist()


def test_each_row_keeps_its_own_parameters_whoever_is_beside_it():
    rows = [Sampling(), SAMPLED, Sampling(repetition_penalty=5.0), Sampling(temperature=0.5, top_k=3)]
    histories = [(), (), tuple(range(50)), ()]
    together = sample_places(
        [
            SamplingPlace(sampler(row, seed=9, history=history), 3 + index)
            for index, (row, history) in enumerate(zip(rows, histories, strict=True))
        ],
        LOGITS,
    )
    alone = [
        token(row, LOGITS[index : index + 1], seed=9, position=3 + index, history=histories[index])
        for index, row in enumerate(rows)
    ]
    assert together.tolist() == alone


def test_token_depends_on_seed_and_position_and_on_nothing_sampled_before():
    logits = mx.zeros((1, 1000))
    first = token(SAMPLED, logits, seed=1, position=7)
    token(SAMPLED, logits, seed=5, position=5)
    assert token(SAMPLED, logits, seed=1, position=7) == first
    assert len({token(SAMPLED, logits, seed=seed, position=7) for seed in range(20)}) > 10
    assert len({token(SAMPLED, logits, seed=1, position=position) for position in range(20)}) > 10


def test_samples_follow_the_probabilities():
    logits = mx.log(mx.array([[0.7, 0.2, 0.1]]))
    counts = np.bincount([token(SAMPLED, logits, seed=seed) for seed in range(1000)], minlength=3) / 1000
    assert counts == pytest.approx([0.7, 0.2, 0.1], abs=0.06)


def test_top_k_keeps_the_k_likeliest():
    ranked = np.argsort(-np.array(LOGITS[0]))
    found = {token(Sampling(temperature=2.0, top_k=3), LOGITS[:1], seed=seed) for seed in range(200)}
    assert found == set(ranked[:3].tolist())


def test_top_k_of_the_whole_vocabulary_or_more_is_no_limit():
    for top_k in (50, 5000):
        assert token(Sampling(temperature=1.0, top_k=top_k), LOGITS[:1]) == token(SAMPLED, LOGITS[:1])


def test_top_p_keeps_the_likeliest_that_make_it_up():
    logits = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    found = {token(Sampling(temperature=1.0, top_p=0.7), logits, seed=seed) for seed in range(200)}
    assert found == {0, 1}


def test_min_p_drops_what_is_unlikely_beside_the_likeliest():
    logits = mx.log(mx.array([[0.5, 0.3, 0.15, 0.05]]))
    found = {token(Sampling(temperature=1.0, min_p=0.4), logits, seed=seed) for seed in range(200)}
    assert found == {0, 1}


def test_penalties_look_at_prompt_and_answer_but_not_further_back_than_mlx_lm_does():
    logits = mx.array([[1.0, 0.9, 0.0]])
    penalized = Sampling(presence_penalty=2.0)
    assert token(penalized, logits, history=(0,)) == 1
    assert token(penalized, logits, history=(0, *[2] * PENALTY_CONTEXT_TOKENS)) == 0
    growing = sampler(penalized)
    assert growing.sample(logits, 0).item() == 0
    growing.accept(0, 1)
    assert growing.sample(logits, 1).item() == 1


def test_frequency_penalty_counts_how_often():
    logits = mx.array([[1.0, 0.9, 0.0]])
    often = Sampling(frequency_penalty=0.04)
    assert token(often, logits, history=(0, 0)) == 0
    assert token(often, logits, history=(0, 0, 0)) == 1


def test_penalties_leave_the_logits_of_the_row_beside_alone():
    logits = mx.array([[1.0, 0.9], [1.0, 0.9]])
    rows = [sampler(Sampling(presence_penalty=2.0), history=(0,)), sampler(Sampling())]
    assert sample_places([SamplingPlace(row, 0) for row in rows], logits).tolist() == [1, 0]


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40))
def test_mixed_seed_fits_the_prng(seed, position):
    assert 0 <= mix(seed, position) < 2**64


def test_neighbouring_seeds_and_positions_do_not_meet():
    """With plain addition, seed 1 at position 2 would sample as seed 2 at position 1."""
    assert len({mix(seed, position) for seed in range(100) for position in range(100)}) == 10_000
