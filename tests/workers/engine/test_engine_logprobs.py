"""Log probabilities are those of mlx-lm's own logits, by every strategy, however a prompt is cut and whoever is beside it."""

from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_logits_processors
from mlx_lm.utils import load_model

from protocol.values import MAX_TOP_LOGPROBS, Sampling
from tests.support.in_process_cluster import InProcessCluster
from workers.zoo import make_tiny_model

# Plain attention; a sliding window with a rotating cache; attention, state-space and expert layers; answers that depend on how a
# prompt is cut, so that a pass without a cache is cut as mlx-lm cuts it.
ARCHITECTURES = ("llama", "gemma3_text", "nemotron_h", "plamo3")
STRATEGIES = ("single-device-cached", "distributed-no-cache", "distributed-cached")
NEAR = 1e-4
COUNT = 6
END = 2


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: make_tiny_model(name, root / name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def cluster_of(models, tmp_path_factory):
    """Clusters by architecture, stages and chunk size, each loaded once."""
    cache_dir = tmp_path_factory.mktemp("cache")

    @cache
    def make(architecture="llama", num_stages=2, chunk_tokens=16):
        return InProcessCluster(
            models[architecture], num_stages=num_stages, cache_dir=cache_dir, chunk_tokens=chunk_tokens
        )

    return make


@pytest.fixture(scope="module")
def expected(models):
    """Of all tokens but the first the log probabilities of the whole vocabulary, (n - 1, V), by mlx-lm's model in mlx-lm's passes."""

    loaded = cache(lambda architecture: load_model(models[architecture])[0])

    def found(architecture, tokens, length, sampling=Sampling()):  # noqa: B008 - frozen
        model, caches = loaded(architecture), make_prompt_cache(loaded(architecture))
        parts = [part for part in (tokens[: length - 1], *([token] for token in tokens[length - 1 : -1])) if part]
        logits = mx.concatenate([model(mx.array([part]), cache=caches)[0] for part in parts])
        processors = make_logits_processors(
            logit_bias=sampling.logit_bias,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
        )
        rows = [logits[place : place + 1] for place in range(len(tokens) - 1)]
        for place in range(length - 1, len(tokens) - 1):
            for processor in processors:
                rows[place] = processor(mx.array(tokens[: place + 1]), rows[place])
        together = mx.concatenate(rows)
        return np.array(together - mx.logsumexp(together, axis=-1, keepdims=True))

    return found


def prompt_of(length):
    return np.random.default_rng(length).integers(5, 300, length).tolist()


def asked(cluster, prompt, strategy, sampling, *, scores_prompt=False):
    sequence = cluster.generate(prompt, COUNT, strategy=strategy, sampling=sampling, scores_prompt=scores_prompt)
    cluster.run()
    assert not cluster.failures
    return sequence


def assert_are(told, tokens, rows, num_top):
    """What is told of `tokens` is what (n, V) rows say of them."""
    assert len(told) == len(tokens) == len(rows)
    for score, token, row in zip(told, tokens, rows, strict=True):
        assert score.logprob == pytest.approx(row[token], abs=NEAR)
        assert [logprob for _, logprob in score.top] == pytest.approx(sorted(row, reverse=True)[:num_top], abs=NEAR)
        assert [row[each] for each, _ in score.top] == pytest.approx([found for _, found in score.top], abs=NEAR)
        assert len({each for each, _ in score.top}) == num_top


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prompt_and_answer_are_as_likely_as_mlx_lm_says(cluster_of, expected, architecture, strategy):
    cluster = cluster_of(architecture)
    for length in (1, 2, 17, 50):
        prompt = prompt_of(length)
        sequence = asked(cluster, prompt, strategy, Sampling(logprobs=3), scores_prompt=True)
        tokens = prompt + cluster.tokens[sequence]
        rows = expected(architecture, tokens, length)
        assert_are(cluster.prompt_logprobs.get(sequence, []), tokens[1:length], rows[: length - 1], 3)
        assert_are(cluster.logprobs[sequence], tokens[length:], rows[length - 1 :], 3)
    cluster.assert_nothing_is_left()


@pytest.mark.parametrize("strategy", [*STRATEGIES, "distributed-prefill"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(logprobs=0),
        Sampling(logprobs=MAX_TOP_LOGPROBS),
        Sampling(logprobs=2, repetition_penalty=1.3, frequency_penalty=0.3),
        Sampling(logprobs=2, logit_bias={7: 30.0, 8: -30.0}),
        Sampling(logprobs=1, temperature=1.3, top_k=40, seed=3),
    ],
    ids=str,
)
def test_answers_are_told_after_penalties_and_biases_and_before_temperature(cluster_of, expected, strategy, sampling):
    cluster, prompt = cluster_of(), prompt_of(130)
    sequence = asked(cluster, prompt, strategy, sampling)
    tokens = prompt + cluster.tokens[sequence]
    rows = expected("llama", tokens, len(prompt), sampling)
    assert_are(cluster.logprobs[sequence], tokens[130:], rows[129:], sampling.logprobs)


@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_of_many_at_once_is_told_what_it_asked_for_and_no_more(cluster_of, expected, num_stages, strategy):
    cluster = cluster_of(num_stages=num_stages)
    samplings = [Sampling(logprobs=number) for number in (None, 0, 1, 5)] + [Sampling(logprobs=2, temperature=0.8)]
    prompts = [prompt_of(length) for length in (1, 5, 20, 40, 33, 64, 3, 18, 19, 21)]
    sequences = [
        cluster.generate(
            prompt, COUNT, strategy=strategy, sampling=samplings[number % 5], scores_prompt=number % 2 == 0
        )
        for number, prompt in enumerate(prompts)
    ]
    cluster.run()
    for number, (sequence, prompt) in enumerate(zip(sequences, prompts, strict=True)):
        wanted = samplings[number % 5].logprobs
        tokens, length = prompt + cluster.tokens[sequence], len(prompt)
        rows = expected("llama", tokens, length)
        if number % 2 == 0:
            assert_are(cluster.prompt_logprobs.get(sequence, []), tokens[1:length], rows[: length - 1], wanted or 0)
        else:
            assert sequence not in cluster.prompt_logprobs
        if wanted is None:
            assert cluster.logprobs[sequence] == []
        else:
            assert_are(cluster.logprobs[sequence], tokens[length:], rows[length - 1 :], wanted)
    cluster.assert_nothing_is_left()


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, None])
def test_prompts_are_told_the_same_of_however_they_are_cut(cluster_of, expected, chunk_tokens):
    cluster, prompt = cluster_of(chunk_tokens=chunk_tokens), prompt_of(130)
    sequence = asked(cluster, prompt, "distributed-cached", Sampling(logprobs=1), scores_prompt=True)
    rows = expected("llama", prompt + cluster.tokens[sequence], 130)
    assert_are(cluster.prompt_logprobs[sequence], prompt[1:], rows[:129], 1)


@pytest.mark.parametrize("strategy", [*STRATEGIES, "distributed-prefill"])
def test_ids_are_the_same_whether_they_are_told_of_or_not(cluster_of, strategy):
    cluster, prompt = cluster_of(), prompt_of(70)
    for sampling in ({}, {"temperature": 1.0, "seed": 5}, {"presence_penalty": 0.5}):
        plain = asked(cluster, prompt, strategy, Sampling(**sampling))
        told = asked(cluster, prompt, strategy, Sampling(**sampling, logprobs=2))
        assert cluster.tokens[plain] == cluster.tokens[told]
        assert cluster.logprobs[plain] == []


def test_end_token_is_told_of_like_any_other(cluster_of, expected):
    cluster, prompt = cluster_of(), prompt_of(9)
    sampling = Sampling(logprobs=1, logit_bias={END: 50.0})
    sequence = cluster.generate(prompt, COUNT, sampling=sampling, end_tokens=(END,))
    cluster.run()
    assert (cluster.tokens[sequence], cluster.finish_reasons[sequence]) == ([END], "stop")
    assert_are(cluster.logprobs[sequence], [END], expected("llama", [*prompt, END], 9, sampling)[-1:], 1)


@pytest.mark.parametrize("strategy", ["single-device-cached", "distributed-cached"])
def test_prompt_that_is_told_of_uses_nothing_that_was_kept_and_leaves_it_for_others(cluster_of, expected, strategy):
    cluster, prompt = cluster_of(), prompt_of(200)
    asked(cluster, prompt, strategy, Sampling())
    sequence = asked(cluster, prompt, strategy, Sampling(), scores_prompt=True)
    assert sequence not in cluster.reused
    assert_are(cluster.prompt_logprobs[sequence], prompt[1:], expected("llama", prompt, 200), 0)
    other = [*prompt_of(150), 7]
    asked(cluster, other, strategy, Sampling(), scores_prompt=True)
    assert cluster.reused[asked(cluster, other, strategy, Sampling())] >= 128


def test_answer_behind_a_kept_prefix_is_told_of(cluster_of, expected):
    cluster, prompt = cluster_of(), prompt_of(210)
    asked(cluster, prompt, "distributed-cached", Sampling())
    sequence = asked(cluster, prompt, "distributed-cached", Sampling(logprobs=2))
    assert cluster.reused[sequence] >= 192
    tokens = prompt + cluster.tokens[sequence]
    assert_are(cluster.logprobs[sequence], tokens[210:], expected("llama", tokens, 210)[209:], 2)
