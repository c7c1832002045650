"""Cuts of tiny models: those of each family give what the whole model gives, and what cannot be cut says why."""

import json

import pytest

from benchmarks.tensor_cuts import SAMPLE, is_right, trials


@pytest.fixture(scope="module")
def outcomes():
    return trials(SAMPLE, [70])


def test_cut_models_give_the_logits_and_ids_of_whole_ones(outcomes):
    assert {case: json.dumps(outcome) for case, outcome in outcomes.items() if not is_right(outcome)} == {}


def test_a_rank_holds_little_more_than_its_part(outcomes):
    """Of one key head every rank has the whole, and two key heads of three ranks are one each."""
    allowed = {"gpt_bigcode:2": 0.56, "qwen3_next:3": 0.45, "gpt_oss:2:4bit": 0.67}
    too_large = {
        case: outcome["share"]
        for case, outcome in outcomes.items()
        if outcome["share"] > allowed.get(case, 0.3 if case.endswith(":4") else 0.55)
    }
    assert too_large == {}


def test_each_family_is_cut_as_it_should_be(outcomes):
    ways = {case.split(":")[0]: {kinds[0] for kinds in outcome["kinds"].values()} for case, outcome in outcomes.items()}
    assert ways["mamba2"] == {"gather"}
    assert all(
        found == {"heads", "feed-forward"} for name, found in ways.items() if name not in ("mamba2", "gemma4_text")
    )
