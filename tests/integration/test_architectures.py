"""Tiny models of many architectures, through the API of real clusters: the ids of mlx-lm alone, split or not."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest

from tests.support.in_process_cluster import alone
from tests.support.running_cluster import RunningCluster
from workers.zoo import make_tiny_model

# Of each kind of cache, attention and experts, beside the plain ones of all other tests here; `test_split_architectures` has them
# all, without processes.
ARCHITECTURES = ("deepseek_v3", "gpt_oss", "nemotron_h")
PROMPTS = tuple(np.random.default_rng(seed).integers(5, 300, length).tolist() for seed, length in enumerate((7, 40)))
MAX_TOKENS = 10
END_ID = 1  # of the tiny models' tokenizer


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """By architecture: its model, and the answers of a cluster to each prompt under each mode.

    Two clusters at a time, one on each core of a small machine.
    """
    root = tmp_path_factory.mktemp("architectures")
    models = {name: make_tiny_model(name, root / name) for name in ARCHITECTURES}
    with ThreadPoolExecutor(2) as pool:
        asked = {name: pool.submit(ask, model) for name, model in models.items()}
        return {name: (models[name], future) for name, future in asked.items()}


def ask(model):
    with closing(RunningCluster()) as cluster:
        cluster.start(model)
        return {
            (mode, number): cluster.complete(prompt, MAX_TOKENS, use_distributed_inference=mode)["tandem"]
            for mode in ("always", "never")
            for number, prompt in enumerate(PROMPTS)
        }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_split_and_whole_model_give_the_ids_of_mlx_lm_alone(answers, architecture):
    model, future = answers[architecture]
    found = future.result()
    for number, prompt in enumerate(PROMPTS):
        ids = alone(model, prompt, MAX_TOKENS, end_tokens=(END_ID,))
        ids = ids[:-1] if ids[-1] == END_ID else ids
        assert found["never", number]["token_ids"] == ids
        assert found["always", number]["token_ids"] == ids
        assert found["never", number]["strategy"] == "single-device-cached"
        assert found["always", number]["strategy"] == "distributed-no-cache"
        assert found["always", number]["workers"] == ["worker-0", "worker-1"]
