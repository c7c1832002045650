"""Every architecture of the installed mlx-lm: stages give bit for bit the logits of the whole model, or are refused, and
engines give the ids of mlx-lm alone under every strategy that the model can have.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from workers import zoo

MODELS_PER_PROCESS = 36
SPECIAL = (
    "llama:tied", "llama:4bit", "qwen2:4bit", "qwen3_moe:4bit", "gemma3_text:4bit", "gemma4_text:4bit",
    "deepseek_v3:4bit", "gpt_oss:4bit", "nemotron_h:4bit", "phi3:tied",
    "llama:3", "qwen3:5", "deepseek_v3:3", "cohere2:5", "qwen3_next:3", "gemma2:one key head", "gemma2:all key heads",
    "gpt_bigcode:3", "nanbeige:looped",
)  # fmt: skip
# What mlx-lm itself cannot run on a machine without Metal or another package, and what has no legal cut, with a word of
# the reason.
NOT_RUN = {"bitnet": "Metal", "muse_spark": "Metal", "olmo": "package"}
NOT_SPLIT = {"iquestloopcoder": "calls 0 layers", "nanbeige:looped": "another order"}


def run_in_child(cases):
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.architectures_child", *cases],
        env=os.environ | {"MLX_DISABLE_COMPILE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]  # mlx-lm prints as well
    outcomes = {outcome.pop("case"): outcome for outcome in map(json.loads, lines)}
    for case in cases[len(outcomes) : len(outcomes) + 1]:
        outcomes[case] = {"wrong": [f"the process ended with {ended.returncode}: {ended.stderr[-300:]}"]}
    return outcomes


@pytest.fixture(scope="module")
def outcomes():
    """By case. Two processes at a time, one on each core of a small machine."""
    cases = [*zoo.architectures(), *SPECIAL]
    parts = [cases[first : first + MODELS_PER_PROCESS] for first in range(0, len(cases), MODELS_PER_PROCESS)]
    with ThreadPoolExecutor(2) as pool:
        found = {case: outcome for part in pool.map(run_in_child, parts) for case, outcome in part.items()}
    assert set(found) == set(cases)
    return found


def test_stages_and_engines_give_what_mlx_lm_alone_gives(outcomes):
    """Bit for bit the logits of two stages and of three, and its greedy ids, of a short and of a long prompt, under each strategy."""
    assert {case: outcome["wrong"] for case, outcome in outcomes.items() if outcome.get("wrong")} == {}


def test_at_least_119_architectures_split(outcomes):
    split = [name for name in zoo.architectures() if outcomes[name].get("cuts")]
    assert len(split) >= 119


def test_only_known_architectures_are_refused_and_each_with_its_reason(outcomes):
    not_run = {case: outcome["not_run"] for case, outcome in outcomes.items() if "not_run" in outcome}
    assert set(not_run) <= set(NOT_RUN)
    assert all(NOT_RUN[case] in reason for case, reason in not_run.items())
    not_split = {case: outcome["why_not"] for case, outcome in outcomes.items() if outcome.get("why_not")}
    assert set(not_split) == set(NOT_SPLIT)
    assert all(NOT_SPLIT[case] in reason for case, reason in not_split.items())


def test_only_known_architectures_do_not_show_their_hidden_states(outcomes):
    assert {case for case, outcome in outcomes.items() if outcome.get("embeds") is False} == {"talkie"}


def test_layers_that_share_the_kv_of_earlier_ones_stay_with_their_source(outcomes):
    split = {case: found for case, found in outcomes.items() if found.get("cuts")}
    limited = {case for case, found in split.items() if found["cuts"] < found["layers"] - 1}
    assert limited == {"afm7", "gemma3n", "gemma4", "gemma4_text", "gemma4_text:4bit"}
