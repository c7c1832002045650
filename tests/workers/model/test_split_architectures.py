"""Every architecture of the installed mlx-lm: stages give bit for bit the logits of the whole model, or are refused, and
engines give the ids of mlx-lm alone under every strategy that the model can have.
"""

import pytest

from tests.support.architecture_children import outcomes_in_children
from workers import zoo

SPECIAL = (
    "llama:tied", "llama:4bit", "qwen2:4bit", "qwen3_moe:4bit", "gemma3_text:4bit", "gemma4_text:4bit",
    "deepseek_v3:4bit", "gpt_oss:4bit", "nemotron_h:4bit", "phi3:tied",
    "qwen3:5", "cohere2:5", "gemma2:one key head", "gemma2:all key heads", "nanbeige:looped",
)  # fmt: skip
# What mlx-lm itself cannot run on a machine without Metal or another package, and what has no legal cut, with a word of
# the reason.
NOT_RUN = {"bitnet": "Metal", "muse_spark": "Metal", "olmo": "package"}
NOT_SPLIT = {"iquestloopcoder": "calls 0 layers", "nanbeige:looped": "another order"}


@pytest.fixture(scope="module")
def outcomes():
    return outcomes_in_children("tests.support.architectures_child", [*zoo.architectures(), *SPECIAL])


def test_stages_and_engines_give_what_mlx_lm_alone_gives(outcomes):
    """Bit for bit the logits of up to four stages, and its greedy ids, of a short and of a long prompt, under each strategy."""
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
