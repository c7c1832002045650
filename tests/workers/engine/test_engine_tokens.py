"""Whatever runs beside a request, its tokens are those of mlx-lm alone: random arrivals, lengths and cancellations."""

from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.values import Sampling
from tests.support.in_process_cluster import InProcessCluster, alone
from workers.zoo import make_tiny_model

# Plain attention; a sliding window with a rotating cache; attention, state-space and expert layers in turn.
ARCHITECTURES = ("llama", "gemma3_text", "nemotron_h")
STRATEGIES = ("single-device-cached", "distributed-no-cache", "distributed-cached")
PROMPT_LENGTHS = (1, 2, 3, 7, 16, 17, 31, 64, 65, 130, 300)
MAX_TOKENS = 12
# Of one prompt: a thousand chunks of three tokens take minutes and test nothing more.
MAX_CHUNKS_IN_TESTS = 40
GREEDY = (
    Sampling(),
    Sampling(repetition_penalty=1.3),
    Sampling(presence_penalty=0.5, frequency_penalty=0.3),
    Sampling(logit_bias={7: 3.0, 250: -5.0}),
)
SEEDED = (
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.7, seed=2, top_k=8),
    Sampling(temperature=1.3, seed=3, top_p=0.8, repetition_penalty=1.2),
    Sampling(temperature=1.0, seed=4, min_p=0.1, logit_bias={9: 2.0}),
)


@dataclass(frozen=True)
class Request:
    """What a client asks, how many turns after the one before, and after how many more it leaves."""

    prompt_tokens: int
    max_tokens: int
    strategy: str
    sampling: Sampling
    arrives_after: int
    leaves_after: int | None


requests = st.builds(
    Request,
    prompt_tokens=st.sampled_from(PROMPT_LENGTHS),
    max_tokens=st.integers(1, MAX_TOKENS),
    strategy=st.sampled_from(STRATEGIES),
    sampling=st.sampled_from(GREEDY + SEEDED),
    arrives_after=st.integers(0, 8),
    leaves_after=st.none() | st.integers(0, 25),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: make_tiny_model(name, root / name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def cluster_of(models, tmp_path_factory):
    """Clusters by architecture, stages and chunk size, each loaded once."""
    cache_dir = tmp_path_factory.mktemp("cache")

    @cache
    def make(architecture, num_stages, chunk_tokens):
        return InProcessCluster(
            models[architecture], num_stages=num_stages, cache_dir=cache_dir, chunk_tokens=chunk_tokens
        )

    return make


def prompt_of(length):
    return np.random.default_rng(length).integers(5, 300, length).tolist()


@pytest.fixture(scope="module")
def expected(models, cluster_of):
    """The ids of a request that has everything for itself, as many as a request may ask for."""

    @cache
    def found(architecture, prompt_tokens, number):
        sampling = (GREEDY + SEEDED)[number]  # by number: a bias is a dict, which a cache cannot take
        prompt = prompt_of(prompt_tokens)
        if sampling.temperature == 0:
            return alone(models[architecture], prompt, MAX_TOKENS, sampling)
        cluster = cluster_of(architecture, 1, 64)
        sequence = cluster.generate(prompt, MAX_TOKENS, strategy="single-device-cached", sampling=sampling)
        cluster.run()
        return cluster.tokens[sequence]

    return lambda architecture, prompt_tokens, sampling: found(
        architecture, prompt_tokens, (GREEDY + SEEDED).index(sampling)
    )


def play(cluster, script):
    """Run the requests at their times; returns their sequence numbers, and which were cancelled."""
    arrivals = list(accumulate(request.arrives_after for request in script))
    leaves = [
        arrival + request.leaves_after if request.leaves_after is not None else None
        for arrival, request in zip(arrivals, script, strict=True)
    ]
    sequences = {}
    last = max([*arrivals, *(leave for leave in leaves if leave is not None)])
    for turn in range(last + 1):
        for index, request in enumerate(script):
            if arrivals[index] == turn:
                sequences[index] = cluster.generate(
                    prompt_of(request.prompt_tokens),
                    request.max_tokens,
                    strategy=request.strategy,
                    sampling=request.sampling,
                )
            if leaves[index] == turn:
                cluster.cancel(sequences[index])
        cluster.turn()
    cluster.run()
    return [sequences[index] for index in range(len(script))]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(
    deadline=None,
    max_examples=10,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    num_stages=st.integers(1, 4),
    chunk_tokens=st.sampled_from([3, 16, 64]),
    script=st.lists(requests, min_size=1, max_size=16),
)
def test_tokens_do_not_depend_on_company_stages_chunks_or_strategy(
    cluster_of, expected, architecture, num_stages, chunk_tokens, script
):
    cluster = cluster_of(architecture, num_stages, chunk_tokens)
    sequences = play(cluster, script)
    for request, sequence in zip(script, sequences, strict=True):
        ids = expected(architecture, request.prompt_tokens, request.sampling)[: request.max_tokens]
        found = cluster.tokens[sequence]
        assert sequence not in cluster.failures
        if request.leaves_after is None:
            assert found == ids
            assert cluster.finish_reasons[sequence] == "length"
        else:
            assert found == ids[: len(found)]
    cluster.assert_nothing_is_left()


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sixteen_at_once_get_the_ids_of_mlx_lm_alone(cluster_of, expected, num_stages, strategy):
    script = [
        Request(PROMPT_LENGTHS[index % 8], MAX_TOKENS - index % 3, strategy, GREEDY[0], 0, None) for index in range(16)
    ]
    cluster = cluster_of("llama", num_stages, 16)
    for request, sequence in zip(script, play(cluster, script), strict=True):
        ids = expected("llama", request.prompt_tokens, request.sampling)
        assert cluster.tokens[sequence] == ids[: request.max_tokens]
    cluster.assert_nothing_is_left()


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
@settings(
    deadline=None,
    max_examples=4,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    num_stages=st.integers(1, 4),
    chunk_tokens=st.none() | st.integers(1, 600),
    lengths=st.lists(st.integers(1, 1500), min_size=1, max_size=4),
)
def test_long_prompts_give_the_ids_of_mlx_lm_alone_however_they_are_cut(
    models, expected, tmp_path, architecture, num_stages, chunk_tokens, lengths
):
    lengths = [min(length, MAX_CHUNKS_IN_TESTS * (chunk_tokens or 600)) for length in lengths]
    cluster = InProcessCluster(
        models[architecture], num_stages=num_stages, cache_dir=tmp_path, chunk_tokens=chunk_tokens
    )
    script = [Request(length, 4, "distributed-cached", GREEDY[0], 7, None) for length in lengths]
    for request, sequence in zip(script, play(cluster, script), strict=True):
        assert cluster.tokens[sequence] == expected(architecture, request.prompt_tokens, GREEDY[0])[:4]
    cluster.assert_nothing_is_left()


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, None])
def test_every_chunk_size_gives_the_same_ids(cluster_of, expected, chunk_tokens):
    cluster = cluster_of("gemma3_text", 2, chunk_tokens)
    sequences = {length: cluster.generate(prompt_of(length), 6) for length in (1, 2, 17, 65, 130)}
    cluster.run()
    for length, sequence in sequences.items():
        assert cluster.tokens[sequence] == expected("gemma3_text", length, GREEDY[0])[:6]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_end_token_ends_the_answer_as_mlx_lm_would(cluster_of, expected, strategy):
    ids = expected("llama", 17, GREEDY[0])
    end = ids[4]
    cluster = cluster_of("llama", 2, 16)
    sequence = cluster.generate(prompt_of(17), MAX_TOKENS, strategy=strategy, end_tokens=(end, 319))
    cluster.run()
    assert cluster.tokens[sequence] == ids[: ids.index(end) + 1]
    assert cluster.finish_reasons[sequence] == "stop"
    cluster.assert_nothing_is_left()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=5, top_k=1),
        Sampling(temperature=1.0, seed=5, top_p=1e-6),
        Sampling(temperature=1.0, seed=5, min_p=1.0),
    ],
)
def test_narrowest_sampling_is_greedy(cluster_of, expected, sampling):
    cluster = cluster_of("llama", 2, 16)
    sequence = cluster.generate(prompt_of(31), 8, sampling=sampling)
    cluster.run()
    assert cluster.tokens[sequence] == expected("llama", 31, GREEDY[0])[:8]


def test_strong_bias_forces_and_bans_tokens(cluster_of, expected):
    cluster = cluster_of("llama", 2, 16)
    banned = expected("llama", 31, GREEDY[0])[0]
    forced = cluster.generate(prompt_of(31), 3, sampling=Sampling(logit_bias={42: 1000.0}))
    without = cluster.generate(prompt_of(31), 8, sampling=Sampling(logit_bias={banned: -1000.0}))
    cluster.run()
    assert cluster.tokens[forced] == [42, 42, 42]
    assert banned not in cluster.tokens[without]


def test_seed_decides_the_sample(cluster_of):
    cluster = cluster_of("llama", 2, 16)
    sampled = [
        cluster.generate(prompt_of(31), 8, sampling=Sampling(temperature=1.5, seed=seed)) for seed in (1, 1, 2, 3)
    ]
    cluster.run()
    first, again, second, third = [cluster.tokens[sequence] for sequence in sampled]
    assert first == again
    assert len({tuple(first), tuple(second), tuple(third)}) == 3
