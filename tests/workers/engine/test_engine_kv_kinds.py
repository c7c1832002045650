"""Each kind of KV cache under the engine: batches, reuse across turns and restarts, and refusals."""

import numpy as np
import pytest

from protocol.values import KvSettings
from tests.support.in_process_cluster import InProcessCluster, alone
from workers.zoo import make_tiny_model

EXACT = [
    KvSettings(kind="static"),
    KvSettings(kind="paged"),
    KvSettings(kind="keys-only"),
    KvSettings(kind="rotating", max_tokens=1024),
]
CLOSE = [
    KvSettings(kind="quantized", bits=8, group_size=32),
    KvSettings(kind="quantized", key_bits=8, value_bits=4, group_size=32),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Plain multi-head attention, so that keys-only is allowed too."""
    path = tmp_path_factory.mktemp("models") / "llama"
    return make_tiny_model("llama", path, num_attention_heads=4, num_key_value_heads=4, hidden_size=128, head_dim=32)


def prompt(seed, length):
    return np.random.default_rng(seed).integers(5, 250, length).tolist()


@pytest.mark.parametrize("kv", EXACT, ids=lambda kv: kv.kind)
@pytest.mark.parametrize("num_stages", [1, 2])
def test_answers_are_those_of_mlx_lm_alone_in_company_and_turn_by_turn(kv, num_stages, model, tmp_path):
    said = prompt(1, 150)
    for life in range(2):
        cluster = InProcessCluster(
            model, num_stages=num_stages, cache_dir=tmp_path, chunk_tokens=40, kv=kv, disk=kv.kind != "rotating"
        )
        for turn in range(2):
            others = [prompt(10 * turn + index, 20 + 30 * index) for index in range(3)]
            prompts = [said, *others]
            numbers = [cluster.generate(text, 6) for text in prompts]
            cluster.run()
            assert cluster.failures == {}
            for number, text in zip(numbers, prompts, strict=True):
                assert cluster.tokens[number] == alone(model, text, 6)
            if turn or (life and kv.kind != "rotating"):
                assert cluster.reused[numbers[0]] >= 128
            said = said + cluster.tokens[numbers[0]] + prompt(99, 10)
        cluster.settle_disk()
        cluster.assert_nothing_is_left()


@pytest.mark.parametrize("kv", CLOSE, ids=lambda kv: f"{kv.bits or (kv.key_bits, kv.value_bits)}")
def test_quantized_caches_answer_the_same_again_when_reused(kv, model, tmp_path):
    cluster = InProcessCluster(model, num_stages=2, cache_dir=tmp_path, chunk_tokens=64, kv=kv)
    answers = []
    for _ in range(2):
        number = cluster.generate(prompt(1, 150), 6)
        cluster.run()
        assert cluster.failures == {}
        answers.append(cluster.tokens[number])
    assert cluster.reused[number] == 128
    assert answers[0] == answers[1]


def test_kind_that_the_model_does_not_allow_is_refused_with_the_reason(tmp_path):
    grouped = make_tiny_model("llama", tmp_path / "gqa", num_attention_heads=4, num_key_value_heads=2)
    with pytest.raises(AssertionError, match="keys-only"):
        InProcessCluster(grouped, num_stages=2, cache_dir=tmp_path, kv=KvSettings(kind="keys-only"))
