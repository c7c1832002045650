"""Models that compute something else without caches, in other chunks or cut apart: engines give the ids of mlx-lm alone."""

import pytest

from tests.support.in_process_cluster import InProcessCluster, alone
from workers.zoo import make_tiny_model

STRATEGIES = ("single-device-cached", "distributed-cached", "distributed-no-cache")
# mlx-lm runs 2,048 tokens of a prompt in its first pass.
LONG = [(7 * place) % 251 + 5 for place in range(2_060)]


def answers(cluster, prompt, max_tokens, strategies=STRATEGIES):
    sequences = [cluster.generate(list(prompt), max_tokens, strategy=strategy) for strategy in strategies]
    cluster.run()
    assert cluster.failures == {}
    return [cluster.tokens[sequence] for sequence in sequences]


@pytest.mark.parametrize("prompt", [LONG, LONG[:1], LONG[:2]], ids=["long", "one token", "two tokens"])
def test_prompts_run_in_mlx_lms_own_chunks_where_others_change_the_answer(tmp_path, prompt):
    model = make_tiny_model("plamo3", tmp_path / "model", num_hidden_layers=2, sliding_window_pattern=2)
    cluster = InProcessCluster(model, num_stages=2, cache_dir=tmp_path, chunk_tokens=16)
    expected = alone(model, list(prompt), 12 if len(prompt) < 9 else 2)
    assert answers(cluster, prompt, len(expected)) == [expected] * 3
    cluster.assert_nothing_is_left()


def test_nothing_of_a_prompt_is_reused_where_its_chunks_change_the_answer(tmp_path):
    model = make_tiny_model("plamo3", tmp_path / "model")
    cluster = InProcessCluster(model, num_stages=2, cache_dir=tmp_path)
    prompt = LONG[:70]
    first = answers(cluster, prompt, 4, STRATEGIES[1:2])
    second = answers(cluster, prompt + first[0], 4, STRATEGIES[1:2])
    assert second == [alone(model, prompt + first[0], 4)]
    assert cluster.reused == {}


@pytest.mark.parametrize(("architecture", "overrides"), [("iquestloopcoder", {}), ("nanbeige", {"num_loops": 2})])
def test_a_model_that_cannot_be_cut_runs_whole_on_each_worker(tmp_path, architecture, overrides):
    model = make_tiny_model(architecture, tmp_path / "model", **overrides)
    cluster = InProcessCluster(model, num_stages=2, cache_dir=tmp_path)
    prompts = [LONG[:80], LONG[3:15], LONG[40:47]]
    sequences = [cluster.generate(list(prompt), 8, strategy="single-device-cached") for prompt in prompts]
    cluster.run()
    assert [cluster.tokens[sequence] for sequence in sequences] == [alone(model, list(ids), 8) for ids in prompts]
    again = cluster.generate(list(prompts[0]), 8, strategy="single-device-cached")
    cluster.run()
    assert cluster.tokens[again] == cluster.tokens[sequences[0]]
    assert cluster.reused[again] >= 64
    cluster.assert_nothing_is_left()
