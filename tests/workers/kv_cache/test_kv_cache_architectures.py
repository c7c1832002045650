"""Every architecture of the installed mlx-lm with every kind of cache, whole and on two stages.

Between two stages the sequence also forks, and is saved and loaded, on the way (see the child).
"""

import pytest

from tests.support.architecture_children import outcomes_in_children
from workers import zoo

EXACT = ("dynamic", "static", "rotating", "paged")
# Run by no machine without Metal, or not to be split; phi3small alone gives logits that are no numbers at this length.
NOT_TRIED = {"bitnet", "muse_spark", "olmo", "iquestloopcoder", "phi3small"}
# In mlx-lm itself these answer otherwise with a cache than without one.
OTHERWISE_CACHED = {"gemma3n", "plamo3"}
# A router that sees slightly other numbers may choose other experts: no bound holds for their logits.
EXPERTS = {
    "Klear", "afmoe", "bailing_moe", "bailing_moe_linear", "dots1", "ernie4_5_moe", "exaone_moe", "glm4_moe", "gpt_oss",
    "granitemoe", "hunyuan", "jamba", "laguna", "lfm2_moe", "mellum", "minimax", "mixtral", "olmoe", "qwen2_moe",
    "qwen3_5_moe", "qwen3_moe", "qwen3_next", "qwen3_vl_moe", "step3p5", "deepseek",
}  # fmt: skip
# Largest difference of any logit, as a share of the largest logit.
BOUND_8_BITS, BOUND_4_BIT_KEYS = 0.02, 0.25
# Architectures whose attention is plain when every query head has keys of its own, and some that only look like it.
PLAIN_ATTENTION = {
    "deepseek", "ernie4_5", "gemma2", "glm4", "gpt_oss", "granitemoehybrid", "minicpm", "mixtral", "nemotron", "phi",
    "qwen2", "stablelm", "starcoder2",
}  # fmt: skip
SPECIAL_ATTENTION = {
    "qwen3": "values computed from its keys differ", "cohere": "values computed from its keys differ",
    "olmo_hybrid": "values computed from its keys differ", "hunyuan": "not rotated in the standard way",
    "plamo": "has no inverse",
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes():
    cases = [name for name in zoo.architectures() if name not in NOT_TRIED]
    cases += [f"{name}:mha" for name in sorted(PLAIN_ATTENTION | SPECIAL_ATTENTION.keys())]
    return outcomes_in_children("tests.support.kv_cache_child", cases)


def differences(outcomes, kind):
    """By architecture, for those that allow the kind: the largest difference on one stage and on two."""
    return {
        case: max(found["kinds"][kind].values())
        for case, found in outcomes.items()
        if kind in found["kinds"] and "refused" not in found["kinds"][kind]
    }


def test_every_architecture_was_tried(outcomes):
    assert {case: found["not_tried"] for case, found in outcomes.items() if "not_tried" in found} == {}


@pytest.mark.parametrize("kind", EXACT)
def test_caches_that_lose_nothing_give_the_very_logits_of_mlx_lms_own(outcomes, kind):
    found = differences(outcomes, kind)
    assert len(found) >= 119
    assert {case: difference for case, difference in found.items() if difference != 0} == {}


def test_mlx_lms_own_cache_gives_the_logits_of_no_cache(outcomes):
    found = {case: outcome["uncached"] for case, outcome in outcomes.items()}
    assert {case.partition(":")[0] for case, difference in found.items() if difference > 1e-4} == OTHERWISE_CACHED


def test_values_recomputed_from_keys_leave_the_logits_as_they_were(outcomes):
    found = differences(outcomes, "keys-only")
    assert {f"{name}:mha" for name in PLAIN_ATTENTION} <= set(found)
    assert max(found.values()) <= 1e-4


def test_attention_that_is_not_plain_is_refused_with_the_reason(outcomes):
    for name, reason in SPECIAL_ATTENTION.items():
        assert reason in outcomes[f"{name}:mha"]["kinds"]["keys-only"]["refused"]


def test_quantized_caches_change_logits_within_the_stated_bound(outcomes):
    for kind, bound in (("quantized", BOUND_8_BITS), ("quantized 4/8", BOUND_4_BIT_KEYS)):
        found = {case: value / outcomes[case]["scale"] for case, value in differences(outcomes, kind).items()}
        assert len(found) >= 85
        assert {case: share for case, share in found.items() if share > bound and case not in EXPERTS} == {}


def test_a_quantized_cache_is_refused_only_for_the_width_of_the_heads(outcomes):
    reasons = [found["kinds"].get("quantized", {}).get("refused") for found in outcomes.values()]
    assert all("numbers wide" in reason for reason in reasons if reason)
