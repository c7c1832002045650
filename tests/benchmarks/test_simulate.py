"""The cost model against the published table, the planner against rules of thumb, predictions against the schedule."""

import itertools
import random
import statistics
from argparse import Namespace

import pytest

from benchmarks.simulate import run
from benchmarks.support import simulated_choices, simulated_loads
from benchmarks.support.model_shapes import SHAPES
from benchmarks.support.published import SUM_S, TABLE, asked_sum_s, fit_machine, predictions
from benchmarks.support.random_clusters import RULES, WORKLOADS, random_cluster, ratios
from benchmarks.support.simulated_loads import compare, planned_route
from benchmarks.support.simulated_macs import MACS, fits
from benchmarks.support.simulated_workers import Placed, SimulatedWorkers
from strategy.chunking import ChunkCost
from strategy.cost import RouteCosts
from strategy.stage_speed import Hop, StageSpeed
from strategy.vocabulary import Route

CELLS = {(cell.model, cell.context, cell.way, cell.what): cell for cell in predictions()}


@pytest.mark.parametrize("key", CELLS, ids=lambda key: " ".join(map(str, key)))
def test_every_published_cell_is_predicted_within_15_percent(key):
    assert abs(CELLS[key].deviation) <= (0.005 if key[2] == "alone" else 0.15)


def test_no_published_cell_is_left_out():
    ways = [[row.alone, *row.pipelines, *row.groups] for row in TABLE]
    assert len(CELLS) == 2 * sum(way is not None for row in ways for way in row) == 54


def test_rows_of_dense_models_agree_on_one_machine():
    machine = fit_machine()
    assert 620e9 < machine.bytes_per_s < 819e9
    assert 0 < machine.layer_s < 0.2e-3


def test_all_published_groups_but_one_ask_for_nearly_the_same_sum():
    asked = {(row.model, row.context, macs): sum_s for row, macs, sum_s in asked_sum_s()}
    odd = asked.pop(("Qwen2.5 32B", 1024, 4))  # published as slower than with 16 times the context
    assert max(asked.values()) < 1.2 * min(asked.values())
    assert max(asked.values()) < SUM_S < odd


@pytest.mark.parametrize(
    ("model", "billions", "active"),
    [
        ("Llama 3.1 8B", 8.03, 8.03),
        ("Qwen2.5 32B", 32.8, 32.8),
        ("Mixtral 8x7B", 46.7, 12.9),
        ("Llama 3.3 70B", 70.6, 70.6),
        ("Llama 3.1 405B", 405.9, 405.9),
    ],
)
def test_shapes_have_the_published_numbers_of_weights(model, billions, active):
    shape = SHAPES[model]
    assert shape.total_bytes * 8 / 4.5 / 1e9 == pytest.approx(billions, rel=0.005)
    assert (shape.token_bytes + shape.head_bytes) * 8 / 4.5 / 1e9 == pytest.approx(active, rel=0.005)


def test_no_rule_of_thumb_beats_the_plan():
    draw = random.Random(1)
    for _ in range(25):
        cluster = random_cluster(draw, draw.randint(2, 6))
        for workload in WORKLOADS.values():
            assert min(ratios(cluster, workload).values(), default=1.0) >= 1 - 1e-9


def test_every_rule_covers_the_model_where_it_applies():
    draw = random.Random(2)
    cluster = random_cluster(draw, 3)
    for rule in RULES.values():
        stages = rule(cluster, WORKLOADS["decode-heavy"])
        assert [layers.start for _, layers in stages] == [0, *(layers.end for _, layers in stages[:-1])]
        assert stages[-1][1].end == len(cluster.sizes.layers)


def test_equal_seeds_give_equal_clusters():
    assert random_cluster(random.Random(5), 4) == random_cluster(random.Random(5), 4)


# --- the schedule

STAGE = StageSpeed(
    decode=((1, 0.010), (8, 0.080)),
    decode_context_s=0.0,
    chunk=ChunkCost(0.0, 0.001),
    chunk_context_s=0.0,
    payload_bytes=1000,
)


def route(num_stages):
    hops = () if num_stages == 1 else (*[Hop(0.002, 1e6)] * (num_stages - 1), Hop(0.005, 1e12))
    return RouteCosts(
        route=Route(tuple("abcd"[:num_stages])), stages=(STAGE,) * num_stages, hops=hops, fixed_chunk_tokens=100
    )


def times_of(num_stages, **asked):
    return shared_times(Placed(route=route(num_stages).route, arrives_s=1.0, **asked))


def shared_times(*requests):
    costs = {found.route: found for found in (route(1), route(2))}
    return SimulatedWorkers(costs, requests).tokens_at(0)


def stream(num_stages, **asked):
    return Placed(route=route(num_stages).route, arrives_s=0.0, prompt_tokens=9, cached_tokens=8, **asked)


def test_one_worker_reads_and_then_generates():
    times = times_of(1, prompt_tokens=201, generated_tokens=3)
    assert times == pytest.approx([1.21, 1.22, 1.23])


def test_chunks_follow_each_other_through_two_stages():
    times = times_of(2, prompt_tokens=201, generated_tokens=2)
    # two chunks: 0.1 each, the second one behind the first, a hop of 0.1 for its bytes and 0.002; then steps of 0.02 and hops
    assert times[0] == pytest.approx(1 + 0.1 + 3 * 0.1 + 0.002 + 0.01, abs=0.02)
    assert times[1] - times[0] == pytest.approx(2 * 0.010 + 0.001 + 0.002 + 0.005)


def test_streams_beside_it_delay_a_token_on_one_worker():
    own = stream(1, generated_tokens=10)
    assert shared_times(own, *[stream(1, generated_tokens=50)] * 3)[-1] > 2 * shared_times(own)[-1]


def test_predicted_times_are_near_what_the_schedule_does():
    draw = random.Random(3)
    found = []
    for num_nodes in (2, 4, 8):
        cluster = random_cluster(draw, num_nodes, 64, rooms=(1 / num_nodes, 3 / num_nodes))
        costs = planned_route(draw, cluster, draw.uniform(0.05, 0.6))
        found += [compare(costs, num_nodes, streams, 1024) for streams in (0, 4, 16)]
    assert statistics.median(each.ttft_error for each in found) < 0.1
    assert statistics.median(each.itl_error for each in found) < 0.02


def test_token_of_a_pipeline_waits_for_the_step_that_runs_on_its_worker_and_for_no_other():
    found = shared_times(stream(2, generated_tokens=9), stream(1, generated_tokens=999))
    gaps = [after - before for before, after in itertools.pairwise(found)]
    assert gaps == pytest.approx([0.010 + 2 * 0.010] * 8)  # on its way it is for 0.018 s elsewhere


def test_prompt_is_read_on_one_route_and_answered_on_another():
    both = Route(("a", "b"))
    own = {"route": Route(("a",)), "arrives_s": 0.0, "prompt_tokens": 401, "generated_tokens": 3}
    read_by = (both, Hop(0.01, 1e9))
    alone, together = shared_times(Placed(**own)), shared_times(Placed(**own, read_by=read_by))
    assert together[1:] == pytest.approx([together[0] + 0.01, together[0] + 0.02])
    assert together[0] > alone[0] - 0.2


# --- the report and the page


def test_report_has_its_targets_met(monkeypatch):
    for module in (simulated_choices, simulated_loads):
        monkeypatch.setattr(module, "NODES", (2, 8, 16))
    report = run(Namespace(page=False, clusters=5, routes=1, seed=0))
    assert {item.what for item in report.checked if not item.met} == set()
    assert len(report.checked) == 11
    chosen = report.data["choices"]
    assert {each["strategy"] for each in chosen} == {"single-device-cached", "distributed-cached"}
    assert all(each["chosen_s"] >= each["best_s"] for each in chosen)
    assert all(min(each["seconds"].values()) >= each["best_s"] for each in report.data["beside"])


def test_page_names_every_mac_and_model():
    text = run(Namespace(page=True)).to_json().decode()
    assert all(mac.name in text for mac in MACS)
    assert all(name in text for name in SHAPES)


def test_largest_model_fits_the_largest_mac_alone_and_no_other():
    assert [mac.name for mac in MACS if fits(mac, SHAPES["Llama 3.1 405B"])] == ["M3 Ultra, 512 GB"]
