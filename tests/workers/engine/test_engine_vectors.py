"""Texts become vectors: on every route those of mlx-lm's own hidden states, beside answers, and nothing stays behind."""

import msgspec
import numpy as np
import pytest

from protocol.messages import Pooled, Row, Step
from protocol.values import Route
from tests.support.hidden_states import assert_near, vector_alone
from tests.support.in_process_cluster import InProcessCluster, alone
from workers.zoo import make_tiny_model

ARCHITECTURES = ("llama", "qwen3", "gemma3_text", "deepseek_v3", "phi3", "cohere2", "minicpm", "mamba2", "qwen3_next")
STRATEGIES = ("single-device-cached", "distributed-cached", "distributed-no-cache")
POOLINGS = ("last", "mean", "cls")
# Of several chunks, of one, of one token.
PROMPTS = ([(7 * place) % 251 + 5 for place in range(50)], [11, 30, 4, 99, 7], [42])
PROMPT = PROMPTS[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}

    def model(architecture):
        if architecture not in made:
            path = tmp_path_factory.mktemp("models") / architecture
            made[architecture] = make_tiny_model(architecture, path)
        return made[architecture]

    return model


@pytest.fixture
def cluster(models, tmp_path):
    return InProcessCluster(models("llama"), num_stages=2, cache_dir=tmp_path, chunk_tokens=16)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vectors_of_every_route_are_mlx_lms_own_hidden_states(models, tmp_path, architecture):
    """All of them at once, and twice: nothing of one may be in another."""
    model = models(architecture)
    cluster = InProcessCluster(model, num_stages=2, cache_dir=tmp_path, chunk_tokens=16)
    asked = [
        (cluster.generate(prompt, 1, strategy=strategy, pooling=pooling), prompt, pooling)
        for strategy in STRATEGIES
        for pooling in POOLINGS
        for prompt in (*PROMPTS, PROMPT)
    ]
    cluster.run()
    assert cluster.failures == {}
    for sequence, prompt, pooling in asked:
        assert_near(cluster.vectors[sequence], vector_alone(model, prompt, pooling))
        assert cluster.tokens[sequence] == []
    cluster.assert_nothing_is_left()


def test_vectors_and_answers_share_a_route_and_are_what_they_are_alone(cluster, models):
    model = models("llama")
    answers = [cluster.generate(prompt, 6) for prompt in PROMPTS]
    vectors = [cluster.generate(prompt, 1, pooling="mean") for prompt in PROMPTS]
    cluster.run()
    for prompt, answer, vector in zip(PROMPTS, answers, vectors, strict=True):
        assert cluster.tokens[answer] == alone(model, prompt, 6)
        assert_near(cluster.vectors[vector], vector_alone(model, prompt, "mean"))


def test_text_that_is_embedded_takes_nothing_of_earlier_ones_and_leaves_nothing(models, tmp_path):
    long = [(3 * place) % 251 + 5 for place in range(200)]
    cluster = InProcessCluster(models("llama"), num_stages=2, cache_dir=tmp_path, chunk_tokens=64)
    embedded = cluster.generate(long, 1, pooling="mean")
    cluster.run()
    answered = cluster.generate(long, 2)
    cluster.run()
    assert cluster.reused == {}
    again = cluster.generate(long, 1, pooling="mean")
    cluster.run()
    assert cluster.reused == {}
    np.testing.assert_array_equal(cluster.vectors[again], cluster.vectors[embedded])
    assert cluster.tokens[answered] == alone(models("llama"), long, 2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_text_whose_client_leaves_costs_nothing_more(cluster, strategy):
    gone = cluster.generate(PROMPT, 1, strategy=strategy, pooling="mean")
    cluster.turn()
    cluster.cancel(gone)
    cluster.run()
    assert cluster.vectors == {}
    cluster.assert_nothing_is_left()


def test_step_that_fails_fails_its_text_alone(cluster, models):
    last = cluster.engines["worker-1"]._runner
    honest, failing = last.launch, []

    def launch(launch, before):
        if launch.step.rows[0].sequence in failing:
            raise RuntimeError("out of memory")
        return honest(launch, before)

    last.launch = launch
    lost = cluster.generate(PROMPT, 1, strategy="distributed-cached", pooling="mean")
    failing.append(1)
    other = cluster.generate(PROMPT, 1, strategy="distributed-cached", pooling="mean")
    cluster.run()
    assert "out of memory" in cluster.failures[lost]
    assert_near(cluster.vectors[other], vector_alone(models("llama"), PROMPT, "mean"))
    cluster.assert_nothing_is_left()


def test_progress_of_a_long_text_is_told_to_its_end(models, tmp_path):
    long = [(3 * place) % 251 + 5 for place in range(300)]
    cluster = InProcessCluster(models("llama"), num_stages=2, cache_dir=tmp_path, chunk_tokens=100)
    sequence = cluster.generate(long, 1, pooling="last")
    cluster.run()
    assert cluster.progress[sequence] == [100, 200]
    assert_near(cluster.vectors[sequence], vector_alone(models("llama"), long))


@pytest.mark.parametrize(
    ("sequence", "buffers"),
    [(99, (b"\0\0\0\0",)), (1, (b"\0\0\0\0",)), (1, ()), (1, (b"\0\0\0",)), (1, (b"",))],
    ids=["of nobody", "of an answer", "without numbers", "of half a number", "of no numbers"],
)
def test_vector_that_nobody_asked_for_changes_nothing(cluster, models, sequence, buffers):
    answer = cluster.generate(PROMPT, 4)
    cluster.turn()
    cluster.post("worker-0", Pooled(sequence=sequence, route=Route(cluster.names)), buffers)
    cluster.run()
    assert cluster.vectors == {}
    assert cluster.tokens[answer] == alone(models("llama"), PROMPT, 4)


def test_text_is_not_sampled_from_whatever_a_step_says(cluster):
    """A head that mixes the two up is told so; nothing crashes."""
    sequence = cluster.generate(PROMPT, 1, pooling="mean")
    runner = cluster.engines["worker-0"]._runner
    links = runner._links

    class Sampling:
        def send(self, worker, message, buffers=()):
            if isinstance(message, Step):
                rows = tuple(Row(row.sequence, row.position, num_sampled=1) for row in message.rows)
                message = msgspec.structs.replace(message, rows=rows)
            links.send(worker, message, buffers)

        def __getattr__(self, name):
            return getattr(links, name)

    runner._links = Sampling()
    cluster.run()
    assert "nothing is sampled for it" in cluster.failures[sequence]


def test_text_that_others_read_is_refused(cluster):
    sequence = cluster.generate(PROMPT, 1, strategy="distributed-prefill", pooling="mean")
    cluster.run()
    assert "a vector of a prompt that others read" in cluster.failures[sequence]
