"""Policy `measured`: what is predicted to be best, what least is known of now and then, and what is said of the others."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy.cost import RouteLoad
from strategy.decision import decide
from strategy.grouping import Groups
from strategy.learning import Learning, Seen
from strategy.occupation import Occupation
from strategy.prediction import Conditions
from strategy.situation import Asked, NoStrategy, Strategy
from strategy.stage_speed import Hop
from strategy.vocabulary import Route
from strategy.wishes import Mode, Objective
from tests.strategy.test_cost import QUICK, route, stage
from tests.strategy.test_decision import ANY, CACHED, NO_CACHE, PIPELINE, SINGLE, TOO_BIG, changed, with_room

ALPHA, BETA = Route(("alpha",)), Route(("beta",))

# Of a prompt's KV to who generates, in tokens a second.
LATE, EARLY = Hop(1e-3, 300), Hop(1e-3, 1e6)


def renamed(costs, name):
    return msgspec.structs.replace(costs, route=name)


def conditions(
    *, alpha=1.0, beta=1.0, hop=QUICK, loads=None, learning=None, objective="total", num_decided=0, handed=LATE
):
    costs = {
        PIPELINE: renamed(route(stage(alpha / 2), stage(beta / 2), hop=hop), PIPELINE),
        ALPHA: renamed(route(stage(alpha)), ALPHA),
        BETA: renamed(route(stage(beta)), BETA),
    }
    occupation = Occupation(costs)
    occupation.changed(loads or {})
    return Conditions(
        costs=costs,
        occupation=occupation,
        learning=learning or Learning(),
        objective=Objective(objective),
        num_decided=num_decided,
        handed=dict.fromkeys([(PIPELINE, "alpha"), (PIPELINE, "beta")], handed),
    )


def decided(prompt, generate, snapshot=ANY, policy="measured", asked=None, **given_conditions):
    snapshot = changed(snapshot, conditions=conditions(**given_conditions))
    return decide(Asked(prompt_tokens=prompt, max_tokens=generate, **(asked or {})), snapshot, policy)


def test_long_answer_takes_one_device_and_long_prompt_all_stages():
    assert decided(20, 200).strategy is SINGLE
    assert decided(4000, 8).strategy is CACHED
    assert decided(4000, 8, hop=Hop(0.5, 1e4)).strategy is SINGLE


def test_long_prompt_and_long_answer_is_read_by_all_and_generated_by_one_unless_the_caches_come_late():
    given = {"hop": Hop(2e-3, 1e9)}
    decision = decided(4000, 400, handed=EARLY, **given)
    assert (decision.strategy, decision.read_by) == (Strategy.DISTRIBUTED_PREFILL, PIPELINE)
    assert decision.workers == ("alpha", "beta")
    assert decision.route.is_single
    assert decided(4000, 400, handed=LATE, **given).strategy is SINGLE


def test_faster_worker_is_taken_and_who_is_busy_is_not():
    assert decided(20, 200, beta=0.7).route == BETA
    assert decided(20, 200, alpha=0.7).route == ALPHA
    busy = {BETA: RouteLoad(decoding=8, context=100)}
    assert decided(20, 200, beta=0.7, loads=busy).route == ALPHA


def test_worker_that_knows_the_beginning_is_taken_although_it_is_slower():
    known = {"reusable": {ALPHA: 1984}}
    assert decided(2000, 20, beta=0.9, asked=known).route == ALPHA
    assert decided(2000, 2000, beta=0.5, asked=known).route == BETA


def test_worker_without_room_is_not_taken():
    snapshot = with_room({"alpha": 10**9, "beta": 100})
    assert decided(20, 200, snapshot, beta=0.5).route == ALPHA


@pytest.mark.parametrize(("objective", "expected"), [("total", SINGLE), ("ttft", CACHED), ("throughput", SINGLE)])
def test_what_is_to_be_least_is_a_setting(objective, expected):
    assert decided(1000, 200, objective=objective, hop=Hop(0.01, 1e9)).strategy is expected


def test_expected_length_counts_not_the_longest_possible():
    assert decided(4000, 4000, asked={"expected_tokens": 8}).strategy is CACHED
    assert decided(4000, 4000, hop=Hop(0.01, 1e9)).strategy is SINGLE


def test_what_was_learned_counts():
    learning = Learning()
    learning.renew(conditions().costs)
    found = decided(20, 200).forecast
    assert found is not None
    for _ in range(20):
        learning.saw(
            SINGLE, found_route := decided(20, 200).route, 19, found.times, Seen(found.ttft_s, found.step_s * 3)
        )
    other = decided(20, 200, learning=learning).route
    assert other != found_route


def test_now_and_then_what_least_is_known_of_is_tried_where_that_costs_little():
    learning = Learning()
    best = decided(200, 8)
    assert best.forecast is not None
    for _ in range(5):
        told = best.forecast
        learning.saw(best.strategy, best.route, told.work.read_tokens, told.times, Seen(told.ttft_s, told.step_s))
    chosen = {number: decided(200, 8, learning=learning, num_decided=number) for number in range(64)}
    others = {number: each for number, each in chosen.items() if each.strategy is not best.strategy}
    assert set(others) <= {31, 63}
    for each in others.values():
        assert each.forecast.total_s <= 1.25 * best.forecast.total_s
        assert "tried again" in each.reason


def test_nothing_measured_goes_by_thresholds():
    decision = decide(Asked(prompt_tokens=5, max_tokens=5), ANY, "measured")
    assert decision.strategy is NO_CACHE
    assert decision.reason.endswith("(nothing was measured yet)")
    assert decision.forecast is None
    assert all(verdict.predicted_ttft_s is None for verdict in decision.candidates)


def test_mode_and_size_leave_policy_the_choice_between_what_they_allow():
    assert decided(4000, 8, asked={"mode": Mode.NEVER}).strategy is SINGLE
    assert decided(20, 200, asked={"mode": Mode.ALWAYS}).strategy is CACHED
    assert decided(20, 200, TOO_BIG).strategy is CACHED
    assert decided(3, 1, TOO_BIG).reason.startswith("the model fits no single worker: ")


def test_group_is_among_what_a_model_that_fits_no_single_worker_can_take():
    group, known = Route(("alpha", "beta"), ranks=2), conditions()
    costs = {**known.costs, group: renamed(route(stage(0.6)), group)}
    snapshot = changed(
        TOO_BIG,
        groups=Groups(routes=(group,), why_none=None),
        needs={**TOO_BIG.needs, group: TOO_BIG.needs[PIPELINE]},
        conditions=msgspec.structs.replace(known, costs=costs, occupation=Occupation(costs)),
    )
    asked = Asked(prompt_tokens=20, max_tokens=200)
    assert decide(asked, snapshot, "measured").strategy is Strategy.TENSOR_PARALLEL
    assert decide(asked, snapshot, "thresholds").strategy is CACHED
    assert decide(msgspec.structs.replace(asked, mode=Mode.ALWAYS), snapshot, "measured").strategy is CACHED


def test_thresholds_stay_as_documented_and_say_what_is_predicted():
    decision = decided(20, 200, policy="thresholds")
    assert decision.reason == "200 tokens to generate are more than 50: one device with a KV cache"
    assert all(verdict.predicted_total_s for verdict in decision.candidates if verdict.feasible)


def test_others_are_ranked_with_the_reason_in_words():
    candidates = decided(20, 200).candidates
    predicted = [verdict.predicted_total_s for verdict in candidates if verdict.predicted_total_s is not None]
    assert predicted == sorted(predicted)
    assert candidates[0].strategy is SINGLE
    assert (candidates[0].reason, candidates[0].why_not) == (None, None)
    assert "s predicted where single-device-cached takes" in candidates[1].reason
    assert all(verdict.reason for verdict in candidates[1:])
    assert candidates[-1].reason == candidates[-1].why_not


@given(
    lengths=st.tuples(st.integers(1, 4000), st.integers(1, 600)),
    speeds=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)),
    latency_s=st.sampled_from([1e-5, 1e-3, 0.1]),
    objective=st.sampled_from(Objective),
    mode=st.none() | st.sampled_from(Mode),
    decoding=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 100)),
    snapshot=st.sampled_from([ANY, TOO_BIG, with_room({"alpha": 3000, "beta": 10**9})]),
)
def test_nothing_is_chosen_that_is_predicted_to_take_much_longer(
    lengths, speeds, latency_s, objective, mode, decoding, snapshot
):
    prompt, generate = lengths
    loads = {ALPHA: RouteLoad(decoding=decoding[0], context=50), PIPELINE: RouteLoad(decoding=decoding[1], context=50)}
    given_conditions = {
        "alpha": speeds[0],
        "beta": speeds[1],
        "hop": Hop(latency_s, 1e9),
        "loads": loads,
        "objective": objective,
        "num_decided": decoding[2],
    }
    try:
        decision = decided(prompt, generate, snapshot, asked={"mode": mode}, **given_conditions)
    except NoStrategy:
        return
    assert decision == decided(prompt, generate, snapshot, asked={"mode": mode}, **given_conditions)
    assert decision.forecast is not None
    if mode in (None, Mode.AUTO) and snapshot.holders and objective is Objective.TOTAL:
        best = min(verdict.predicted_total_s for verdict in decision.candidates if verdict.predicted_total_s)
        assert decision.forecast.total_s <= 1.25 * best + 1e-5


def test_strategies_that_cannot_run_are_never_predicted():
    for verdict in decided(20, 200).candidates:
        assert (verdict.predicted_total_s is None) == (not verdict.feasible)
        assert verdict.strategy in Strategy
