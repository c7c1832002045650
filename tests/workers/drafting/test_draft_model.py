"""A draft model guesses what it would say itself, whatever became of its guesses before."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from protocol.values import Sampling
from strategy.memory import grown_bytes, sequence_bytes
from workers.drafting.draft_model import DraftModel
from workers.engine.sampling import TokenSampler
from workers.kv_cache.rows import can_forget
from workers.zoo import make_tiny_model

PROMPT = list(range(30, 60))
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.9, top_p=0.9),
    Sampling(temperature=0.5, repetition_penalty=1.5, logit_bias={33: 3.0}),
]


@pytest.fixture(scope="module", params=["llama", "gemma3", "mamba2"])
def model(request, tmp_path_factory):
    return load_model(make_tiny_model(request.param, tmp_path_factory.mktemp("drafts") / request.param))[0]


def by_itself(model, tokens, count, sampling, seed):
    """What it says of a text that it has not seen before, all of it each time."""
    tokens = list(tokens)
    for _ in range(count):
        sampler = TokenSampler(sampling, seed, tuple(tokens))
        logits = model(mx.array([tokens]))[:, -1, :]
        tokens.append(sampler.sample(logits, len(tokens)).item())
    return tokens[-count:]


@pytest.mark.parametrize("begins_early", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "biased"])
def test_guesses_are_what_it_says_of_the_text_whether_or_not_the_last_ones_came_true(model, sampling, begins_early):
    draft = DraftModel(model, 1 << 20)
    draft.begins_early = begins_early
    source = draft.source(sampling, 7)
    tokens = list(PROMPT)
    for count, num_right in ((4, 4), (3, 1), (1, 0), (5, 2), (2, 2), (7, 0)):
        guesses = source.guess(tokens, count)
        assert len(guesses) == count or (sampling.temperature == 0 and count > 4)
        assert guesses == by_itself(model, tokens, len(guesses), sampling, 7)
        tokens += [*guesses[:num_right], 61]


def test_caches_take_what_is_said_of_them_until_the_sequence_ends(model):
    draft = DraftModel(model, 1 << 20)
    sources = [draft.source(Sampling(), seed) for seed in range(2)]
    assert draft.kv_bytes == 0
    for source in sources:
        source.guess(PROMPT, 4)
    num_tokens = len(PROMPT) + 3
    assert 2 * sequence_bytes(draft.needs, num_tokens) <= draft.kv_bytes <= 2 * grown_bytes(draft.needs, num_tokens)
    del source, sources
    assert draft.kv_bytes == 0


class Sure:
    """Says one more than the token before, and how sure it is of that."""

    def __init__(self, margin):
        self._margin = margin

    def parameters(self):
        return []

    def make_cache(self):
        return []

    def __call__(self, tokens, cache=None):
        return self._margin * (mx.arange(100) == (tokens[..., None] + 1))


@pytest.mark.parametrize(("margin", "expected"), [(12.0, 15), (6.0, 7), (2.0, 3)])
def test_greedy_guesses_end_where_it_is_not_sure_that_all_are_right(margin, expected):
    guesses = DraftModel(Sure(margin), 100).source(Sampling(), 0).guess([5, 6], 15)
    assert guesses == list(range(7, 7 + expected))


def test_sampled_guesses_and_those_that_look_back_are_as_many_as_asked_for():
    for sampling in (Sampling(temperature=1.0), Sampling(repetition_penalty=1.1)):
        assert len(DraftModel(Sure(2.0), 100).source(sampling, 0).guess([5, 6], 15)) == 15


def test_guesses_behind_guesses_are_what_it_says_of_both_whatever_came_true(model):
    source = DraftModel(model, 1 << 20).source(Sampling(), 7)
    goes_back = all(map(can_forget, make_prompt_cache(model)))
    tokens = list(PROMPT)
    for num_right in (9, 2, 0, 5):
        guesses = source.guess(tokens, 3)
        for count in (4, 2):
            more = source.guess(tokens, count, guesses)
            assert more == (by_itself(model, [*tokens, *guesses], count, Sampling(), 7) if goes_back else [])
            guesses += more
        tokens += [*guesses[:num_right], 61]


def test_long_prompt_is_read_some_at_a_time_before_anything_is_guessed(model):
    source = DraftModel(model, 1 << 20).source(Sampling(), 7)
    tokens = [20 + index % 50 for index in range(540)]
    assert source.guess(tokens[:539], 2) == []
    assert source.guess(tokens, 2) == by_itself(model, tokens, 2, Sampling(), 7)


def test_ids_that_the_large_model_does_not_have_are_not_guessed(model):
    source = DraftModel(model, 20).source(Sampling(), 0)
    assert max(source.guess(PROMPT[:5], 6)) < 20


def test_text_with_ids_that_it_does_not_know_is_not_guessed_on(model):
    source = DraftModel(model, 1 << 20).source(Sampling(), 0)
    assert not source.expects([*PROMPT, 1 << 19])
    assert source.guess([1 << 19, *PROMPT], 3) == []
