"""The documented rules, boundary by boundary, and that what is said is what runs."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy.cache_use import MeasuredUse, PayingRange
from strategy.decision import MAX_SCORED_UNCACHED, decide
from strategy.grouping import Groups
from strategy.memory import KvGrowth, KvNeeds, WorkerBudget
from strategy.policies import POLICIES
from strategy.situation import Asked, NoStrategy, Snapshot, Strategy, Thresholds
from strategy.vocabulary import Route
from strategy.wishes import Mode

SINGLE, NO_CACHE, CACHED, PREFILL = (
    Strategy.SINGLE_DEVICE_CACHED,
    Strategy.DISTRIBUTED_NO_CACHE,
    Strategy.DISTRIBUTED_CACHED,
    Strategy.DISTRIBUTED_PREFILL,
)
PIPELINE = Route(("alpha", "beta"))
NEEDS = KvNeeds(fixed_bytes=0, growth=(KvGrowth(10, None),), snapshots=False)
ROUTES = (PIPELINE, Route(("alpha",)), Route(("beta",)))
ANY = Snapshot(
    pipeline=PIPELINE,
    why_not=None,
    splittable=True,
    holders={"alpha": 0, "beta": 0},
    shortage=None,
    needs={route: dict.fromkeys(route, NEEDS) for route in ROUTES},
    budgets={name: WorkerBudget(prefix_bytes=0, sequence_bytes=10**9) for name in PIPELINE},
    measured=None,
    visited={},
    thresholds=Thresholds(),
    mode=Mode.AUTO,
)
TOO_BIG = msgspec.structs.replace(ANY, holders={}, shortage="the full model needs 9 GB")
UNCUT = msgspec.structs.replace(ANY, pipeline=None, why_not="the model cannot be split: a loop", splittable=False)


def changed(snapshot=ANY, **fields):
    return msgspec.structs.replace(snapshot, **fields)


def with_room(room, snapshot=ANY):
    budgets = {name: WorkerBudget(prefix_bytes=0, sequence_bytes=room[name]) for name in PIPELINE}
    return changed(snapshot, budgets=budgets)


def decided(prompt, generate, snapshot=ANY, **fields):
    return decide(Asked(prompt_tokens=prompt, max_tokens=generate, **fields), snapshot, "thresholds")


def refusal(prompt, generate, snapshot=ANY, **fields):
    with pytest.raises(NoStrategy) as caught:
        decided(prompt, generate, snapshot, **fields)
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "generate", "expected"),
    [(1, 1, NO_CACHE), (100, 50, NO_CACHE), (101, 50, SINGLE), (100, 51, SINGLE), (101, 51, SINGLE)],
)
def test_both_thresholds_are_inclusive(prompt, generate, expected):
    assert decided(prompt, generate).strategy is expected


def test_reason_names_the_threshold_that_was_exceeded():
    assert decided(182, 10).reason == "182 prompt tokens are more than 100: one device with a KV cache"
    assert decided(10, 51).reason == "51 tokens to generate are more than 50: one device with a KV cache"


def test_thresholds_are_settings():
    assert decided(11, 5, changed(thresholds=Thresholds(10, 50))).strategy is SINGLE


@pytest.mark.parametrize("lengths", [(1, 1), (5000, 5000)])
@pytest.mark.parametrize("by", ["cluster", "request"])
def test_always_is_distributed_and_never_is_single_device(lengths, by):
    for mode, expected in ((Mode.ALWAYS, NO_CACHE), (Mode.NEVER, SINGLE)):
        snapshot, fields = (changed(mode=mode), {}) if by == "cluster" else (ANY, {"mode": mode})
        decision = decided(*lengths, snapshot, **fields)
        assert decision.strategy is expected
        assert decision.route.is_single == (expected is SINGLE)
        assert decision.cached == (expected is SINGLE)


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.ALWAYS])
def test_model_that_fits_no_worker_is_distributed_whatever_the_lengths(mode):
    assert decided(5, 5, TOO_BIG, mode=mode).strategy is NO_CACHE
    assert decided(500, 500, TOO_BIG, mode=mode).strategy is CACHED


def test_never_with_a_model_that_fits_nowhere_says_the_figures_and_that_more_workers_could_help():
    error = refusal(5, 5, TOO_BIG, mode=Mode.NEVER)
    assert "9 GB" in str(error)
    assert not error.lasting


GROUPS = [Route(("alpha", "beta"), 2), Route(("gamma", "delta"), 2)]
GROUPED = changed(
    groups=Groups(routes=tuple(GROUPS), why_none=None),
    group_load={GROUPS[0]: 2, GROUPS[1]: 1},
    needs={**ANY.needs, **{group: dict.fromkeys(group, NEEDS) for group in GROUPS}},
    budgets={name: WorkerBudget(prefix_bytes=0, sequence_bytes=10**6) for name in ("alpha", "beta", "gamma", "delta")},
)


def test_group_is_taken_by_name_the_least_busy_one_with_a_cache_on_each_rank():
    decision = decided(50, 50, GROUPED, strategy=Strategy.TENSOR_PARALLEL)
    assert (decision.route, decision.cached, decision.workers) == (GROUPS[1], True, ("gamma", "delta"))
    assert set(decision.bytes_by_worker) == {"gamma", "delta"}
    assert decided(50, 50, GROUPED).strategy is NO_CACHE
    assert decided(500, 50, GROUPED).strategy is SINGLE


ONLY_PARTS = changed(
    GROUPED,
    pipeline=None,
    why_not="alpha+beta have room for nothing but their parts of the model",
    holders={},
    shortage="the full model needs 9 GB",
)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.ALWAYS])
@pytest.mark.parametrize("lengths", [(5, 5), (500, 500)])
def test_groups_that_alone_have_the_model_are_taken_and_the_others_say_why_not(policy, mode, lengths):
    asked = Asked(prompt_tokens=lengths[0], max_tokens=lengths[1], mode=mode)
    decision = decide(asked, ONLY_PARTS, policy)
    assert (decision.strategy, decision.route) == (Strategy.TENSOR_PARALLEL, GROUPS[1])
    assert decision.reason.endswith(": the workers of a group together, since no pipeline is there")
    why_not = {each.strategy: each.why_not for each in decision.candidates if not each.feasible}
    assert why_not == {SINGLE: ONLY_PARTS.shortage} | dict.fromkeys((NO_CACHE, CACHED, PREFILL), ONLY_PARTS.why_not)


def test_one_device_is_never_to_be_had_where_groups_alone_have_the_model():
    assert "the full model needs 9 GB" in str(refusal(5, 5, ONLY_PARTS, mode=Mode.NEVER))
    assert refusal(10**6, 50, ONLY_PARTS).too_large


def test_group_refuses_what_no_rank_has_room_for():
    assert refusal(10**6, 50, GROUPED, strategy=Strategy.TENSOR_PARALLEL).too_large


def test_group_whose_worker_may_come_back_is_waited_for():
    awaited = changed(groups=Groups(why_none="beta of the group alpha+beta is not there", are_awaited=True))
    error = refusal(5, 5, awaited, strategy=Strategy.TENSOR_PARALLEL)
    assert (str(error), error.lasting) == (
        "tensor-parallel cannot run: beta of the group alpha+beta is not there",
        False,
    )
    goes_on = decided(5, 5, awaited, began_with=Strategy.TENSOR_PARALLEL)
    assert goes_on.strategy is NO_CACHE


def test_strategy_by_name_wins_over_mode_and_lengths():
    assert decided(5000, 5000, mode=Mode.NEVER, strategy=CACHED).strategy is CACHED


def test_strategy_by_name_that_cannot_run_is_refused_not_replaced():
    assert str(refusal(5, 5, TOO_BIG, strategy=SINGLE)) == "single-device-cached cannot run: the full model needs 9 GB"


def test_group_that_nobody_configured_is_refused_for_good():
    error = refusal(5, 5, strategy=Strategy.TENSOR_PARALLEL)
    assert "name some in [[groups]]" in str(error)
    assert error.lasting


def test_model_that_cannot_be_cut_runs_on_one_worker_by_itself_and_refuses_what_is_distributed():
    decision = decided(5, 5, UNCUT)
    assert decision.strategy is SINGLE
    assert "the model cannot be split: a loop" in decision.reason
    for fields in ({"mode": Mode.ALWAYS}, {"strategy": CACHED}, {"strategy": NO_CACHE}):
        error = refusal(5, 5, UNCUT, **fields)
        assert "the model cannot be split: a loop" in str(error)
        assert error.lasting


def test_pipeline_of_one_worker_is_a_distributed_route():
    alone = changed(pipeline=Route(("alpha",)), holders={"alpha": 0})
    decision = decided(5, 5, alone, mode=Mode.ALWAYS)
    assert (decision.strategy, decision.route) == (NO_CACHE, Route(("alpha",)))


# --- which worker


def test_least_busy_holder_takes_a_request():
    assert decided(500, 5, changed(holders={"alpha": 3, "beta": 1})).route.head == "beta"


def test_who_knows_the_beginning_takes_it_unless_clearly_busier():
    for load, expected in ((2, "beta"), (3, "alpha")):
        snapshot = changed(holders={"alpha": 0, "beta": load}, visited={"c": "beta", b"k": "alpha"})
        assert decided(500, 5, snapshot, beginnings=("c", b"k")).route.head == expected


def test_who_knows_the_beginning_but_is_gone_is_not_asked():
    assert (
        decided(500, 5, changed(holders={"alpha": 0}, visited={"c": "beta"}), beginnings=("c",)).route.head == "alpha"
    )


def test_holder_without_room_for_the_caches_is_passed_over():
    decision = decided(
        500, 5, with_room({"alpha": 10, "beta": 10**9}, changed(visited={"c": "alpha"})), beginnings=("c",)
    )
    assert decision.route.head == "beta"


# --- a prompt that all stages read for one worker


@pytest.mark.parametrize(("load", "holder"), [((0, 0), "beta"), ((0, 1), "alpha"), ((1, 0), "beta")])
def test_prompt_is_read_by_all_stages_and_generated_by_the_least_busy_holder_the_last_of_them(load, holder):
    decision = decided(500, 5, changed(holders=dict(zip(PIPELINE, load, strict=True))), strategy=PREFILL)
    assert (decision.strategy, decision.route, decision.read_by) == (PREFILL, Route((holder,)), PIPELINE)
    assert decision.cached
    assert decision.workers == ("alpha", "beta")
    assert decided(500, 5).read_by is None


def test_holder_that_reads_nothing_stands_behind_those_that_do():
    decision = msgspec.structs.replace(decided(500, 5, strategy=PREFILL), route=Route(("gamma",)))
    assert decision.workers == ("alpha", "beta", "gamma")
    assert decided(500, 5).workers == ("alpha",)


def test_stages_and_holder_each_reserve_their_part_of_the_sequence():
    assert decided(500, 12, strategy=PREFILL).bytes_by_worker == {"alpha": 5120, "beta": 2 * 5120}


def test_holder_without_room_for_its_stage_and_the_whole_is_passed_over():
    roomy = with_room({"alpha": 2 * 5120, "beta": 5120})
    assert decided(500, 12, roomy, strategy=PREFILL).route.head == "alpha"
    error = refusal(500, 12, with_room({"alpha": 5120, "beta": 5120}), strategy=PREFILL)
    assert error.too_large
    assert "512 tokens needs 0.0 MB on beta" in str(error)


def test_nothing_is_handed_over_for_a_text_that_becomes_a_vector():
    error = refusal(500, 1, strategy=PREFILL, embeds=True)
    assert "nothing is handed over" in str(error)
    assert error.lasting
    assert decided(500, 1, embeds=True).strategy == SINGLE
    assert decided(500, 1, embeds=True, strategy=CACHED).strategy == CACHED


PREFILL_REFUSALS = {
    "takes at least two workers": changed(pipeline=Route(("alpha",)), holders={"alpha": 0}),
    "depend on how a prompt is cut": changed(whole_prompts=True),
    "the full model needs 9 GB": TOO_BIG,
    "the model cannot be split: a loop": UNCUT,
    "shorten the prompt": with_room({"alpha": 5119, "beta": 10**9}),
}


@pytest.mark.parametrize("why_not", PREFILL_REFUSALS)
def test_prompt_that_cannot_be_read_for_one_worker_is_refused_with_what_is_missing(why_not):
    assert why_not in str(refusal(500, 12, PREFILL_REFUSALS[why_not], strategy=PREFILL))


def test_thresholds_never_have_a_prompt_read_for_one_worker():
    for lengths in ((5, 5), (500, 5), (5000, 5000)):
        assert decided(*lengths).strategy is not PREFILL


def test_request_whose_prompt_was_read_for_one_worker_goes_on_there_alone_where_nobody_else_is_left():
    assert decided(500, 5, began_with=PREFILL, strategy=PREFILL).strategy is PREFILL
    alone = changed(pipeline=Route(("alpha",)), holders={"alpha": 0})
    decision = decided(500, 5, alone, began_with=PREFILL, strategy=PREFILL)
    assert (decision.strategy, decision.route) == (SINGLE, Route(("alpha",)))
    assert "goes on with single-device-cached, since distributed-prefill cannot" in decision.reason


# --- a prompt whose own tokens are told of


def test_prompt_that_others_read_is_not_told_of():
    assert "is told by the worker that reads it for itself" in str(
        refusal(500, 5, strategy=PREFILL, scores_prompt=True)
    )
    assert decided(500, 5, scores_prompt=True).strategy is SINGLE


def test_long_prompt_is_told_of_with_a_cache_only():
    long = {"scores_prompt": True, "strategy": NO_CACHE}
    assert decided(MAX_SCORED_UNCACHED, 5, **long).strategy is NO_CACHE
    assert "is told with a KV cache only" in str(refusal(MAX_SCORED_UNCACHED + 1, 5, **long))
    assert decided(MAX_SCORED_UNCACHED + 1, 5, strategy=NO_CACHE).strategy is NO_CACHE
    always = decided(MAX_SCORED_UNCACHED + 1, 5, mode=Mode.ALWAYS, scores_prompt=True)
    assert (always.strategy, always.cached) == (CACHED, True)
    never = PayingRange(never=True)
    never_pays = MeasuredUse(machine="m", prompt_tokens=8, single_device=never, distributed=never)
    for strategy in (SINGLE, CACHED):
        asked = {"snapshot": changed(measured=never_pays), "strategy": strategy}
        assert not decided(MAX_SCORED_UNCACHED, 5, scores_prompt=True, **asked).cached
        assert decided(MAX_SCORED_UNCACHED + 1, 5, scores_prompt=True, **asked).cached


# --- memory


def test_bytes_are_those_of_the_route_that_is_taken():
    assert decided(500, 12, mode=Mode.NEVER).bytes_by_worker == {"alpha": 5120}
    assert decided(500, 12, strategy=CACHED).bytes_by_worker == {"alpha": 5120, "beta": 5120}
    assert decided(500, 12, strategy=NO_CACHE).bytes_by_worker == {}


@pytest.mark.parametrize("strategy", [None, CACHED, PREFILL, NO_CACHE])
def test_bytes_by_tokens_end_with_the_most_and_go_on_as_far_as_there_is_room(strategy):
    decision = decided(500, 12, strategy=strategy)
    assert (decision.num_tokens, decision.most_tokens) == (500, 512)
    assert decision.bytes_of(512) == decision.bytes_by_worker
    for room in (10_240, 10**9):
        longer = decision.going_on(5000, dict.fromkeys(decision.caches, room))
        assert all(wanted <= room for wanted in longer.bytes_by_worker.values())
        assert longer.most_tokens == 5000 or any(
            wanted > room for wanted in longer.bytes_of(longer.most_tokens + 1).values()
        )


def test_request_whose_caches_fit_nowhere_is_too_large_with_the_figures():
    error = refusal(500, 12, with_room({"alpha": 5119, "beta": 5119}))
    assert error.too_large
    assert "512 tokens needs 0.0 MB on alpha" in str(error)


def test_stages_take_what_no_single_worker_has_room_for():
    needs = ANY.needs | {PIPELINE: dict.fromkeys(PIPELINE, KvNeeds(fixed_bytes=0, growth=(), snapshots=False))}
    decision = decided(500, 12, with_room({"alpha": 5119, "beta": 5119}, changed(needs=needs)))
    assert decision.strategy is CACHED
    assert "single-device-cached cannot run now (the KV cache of 512 tokens needs" in decision.reason


def test_caches_that_do_not_fit_an_uncuttable_model_are_too_large_not_a_wish():
    assert refusal(500, 12, with_room({"alpha": 5119, "beta": 5119}, UNCUT)).too_large


# --- measured use


MEASURED = MeasuredUse(
    machine="m", prompt_tokens=8, single_device=PayingRange(first=20), distributed=PayingRange(first=40)
)


@pytest.mark.parametrize(
    ("asked_for", "max_tokens", "runs_as", "cached"),
    [
        (SINGLE, 19, SINGLE, False),
        (SINGLE, 20, SINGLE, True),
        (CACHED, 39, NO_CACHE, False),
        (CACHED, 40, CACHED, True),
    ],
)
def test_strategy_whose_cache_does_not_pay_is_named_by_what_it_does(asked_for, max_tokens, runs_as, cached):
    decision = decided(5, max_tokens, changed(measured=MEASURED), strategy=asked_for)
    assert (decision.strategy, decision.cached) == (runs_as, cached)
    assert ("does not pay" in decision.reason) != cached
    assert {verdict.strategy: verdict.cached for verdict in decision.candidates}[asked_for] == cached
    assert bool(decision.bytes_by_worker) == cached


# --- going on


def test_request_goes_on_as_it_began_where_it_can_and_otherwise_anew():
    decision = decided(5, 5, began_with=CACHED)
    assert (decision.strategy, decision.reason) == (CACHED, "goes on with distributed-cached, as it began")
    assert decided(500, 5, TOO_BIG, began_with=SINGLE).strategy is CACHED
    assert refusal(500, 5, TOO_BIG, began_with=SINGLE, strategy=SINGLE)


# --- what is told


def test_policies_are_those_that_exist():
    assert set(POLICIES) == {"thresholds", "measured"}


@given(
    prompt=st.integers(1, 600),
    generate=st.integers(1, 600),
    mode=st.sampled_from(Mode),
    strategy=st.none() | st.sampled_from(Strategy),
    began_with=st.none() | st.sampled_from([SINGLE, NO_CACHE, CACHED, PREFILL]),
    snapshot=st.sampled_from([ANY, TOO_BIG, UNCUT, changed(measured=MEASURED)]),
    room=st.sampled_from([0, 3000, 10**9]),
)
def test_what_is_decided_is_among_the_candidates_and_fits(prompt, generate, mode, strategy, began_with, snapshot, room):
    snapshot = with_room({"alpha": room, "beta": room}, snapshot)
    try:
        decision = decided(prompt, generate, snapshot, mode=mode, strategy=strategy, began_with=began_with)
    except NoStrategy:
        return
    assert [verdict.strategy for verdict in decision.candidates] == list(Strategy)
    verdict = next(verdict for verdict in decision.candidates if verdict.strategy is decision.strategy)
    assert (verdict.feasible, verdict.cached) == (True, decision.cached)
    assert decision.cached == bool(decision.bytes_by_worker)
    assert set(decision.bytes_by_worker) <= set(decision.workers)
    assert (decision.read_by is not None) == (decision.strategy is PREFILL)
    assert all(needed <= room for needed in decision.bytes_by_worker.values())
    for verdict in decision.candidates:
        assert verdict.feasible == (verdict.why_not is None)
