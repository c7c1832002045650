"""Every architecture of the installed mlx-lm: stages give bit for bit the logits of the whole model, or are refused."""

import json
import os
import subprocess
import sys

import pytest

from workers import zoo

MODELS_PER_PROCESS = 14
SPECIAL = (
    "llama:tied", "llama:4bit", "qwen2:4bit", "qwen3_moe:4bit", "gemma3_text:4bit", "gemma4_text:4bit",
    "deepseek_v3:4bit", "gpt_oss:4bit", "nemotron_h:4bit", "phi3:tied",
)  # fmt: skip
# What cannot be tried or split with mlx-lm 0.32 on a machine without Metal, and a word of the reason.
REFUSED = {"bitnet": "Metal", "muse_spark": "Metal", "olmo": "package", "iquestloopcoder": "calls 0 layers"}


def split_in_child(cases):
    ended = subprocess.run(
        [sys.executable, "-m", "tests.support.architectures_child", *cases],
        env=os.environ | {"MLX_DISABLE_COMPILE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    lines = [line for line in ended.stdout.splitlines() if line.startswith("{")]  # mlx-lm prints as well
    outcomes = {outcome.pop("case"): outcome for outcome in map(json.loads, lines)}
    for case in cases[len(outcomes) : len(outcomes) + 1]:
        outcomes[case] = {"wrong": [f"the process ended with {ended.returncode}: {ended.stderr[-300:]}"]}
    return outcomes


@pytest.fixture(scope="module")
def outcomes():
    cases = [*zoo.architectures(), *SPECIAL]
    found = {}
    for first in range(0, len(cases), MODELS_PER_PROCESS):
        found |= split_in_child(cases[first : first + MODELS_PER_PROCESS])
    assert set(found) == set(cases)
    return found


def test_every_split_gives_the_logits_of_the_whole_model(outcomes):
    assert {case: outcome["wrong"] for case, outcome in outcomes.items() if outcome.get("wrong")} == {}


def test_at_least_119_architectures_split(outcomes):
    split = [name for name in zoo.architectures() if outcomes[name].get("cuts")]
    assert len(split) >= 119


def test_only_known_architectures_are_refused_and_each_with_its_reason(outcomes):
    refused = {case: outcome["refused"] for case, outcome in outcomes.items() if "refused" in outcome}
    assert set(refused) <= set(REFUSED)
    assert all(REFUSED[case] in reason for case, reason in refused.items())


def test_layers_that_share_the_kv_of_earlier_ones_stay_with_their_source(outcomes):
    limited = {case for case, found in outcomes.items() if found.get("cuts", 0) < found.get("layers", 1) - 1}
    assert limited == {"afm7", "gemma3n", "gemma4", "gemma4_text", "gemma4_text:4bit"}
