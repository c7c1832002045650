"""The best split of all, beside trying every one; what a split costs; splits over more nodes than can be tried."""

import functools
import itertools
import math
import random

import pytest

from strategy.optimal_split import optimal_split
from strategy.partition import ModelSizes
from strategy.split_costs import HopCosts, NodeSpeeds, Workload, cost_of, stage_bytes
from strategy.vocabulary import LayerRange

FREE = HopCosts(default_decode_s=0.0, default_chunk_s=0.0)


def sizes(layers, embedding=0, head=0, tied=False) -> ModelSizes:
    return ModelSizes(layers=tuple(layers), embedding=embedding, head=head, tied=tied)


def node(name, decode_s, chunk_s, *, room=10**12, embed=(0.0, 0.0), head=(0.0, 0.0)) -> NodeSpeeds:
    return NodeSpeeds(
        name=name,
        decode_s=tuple(decode_s),
        chunk_s=tuple(chunk_s),
        embed_decode_s=embed[0],
        embed_chunk_s=embed[1],
        head_decode_s=head[0],
        head_chunk_s=head[1],
        room_bytes=room,
    )


class Instance:
    """Everything that `optimal_split` is asked with, and all splits of it."""

    def __init__(self, model, kv_bytes, nodes, hops, workload, cuts):
        self.model, self.kv_bytes, self.nodes = model, kv_bytes, nodes
        self.hops, self.workload, self.cuts = hops, workload, cuts

    def solve(self, **options):
        return optimal_split(self.model, self.kv_bytes, self.nodes, self.hops, self.workload, self.cuts, **options)

    def cost(self, stages) -> float:
        return cost_of(stages, self.nodes, self.hops, self.workload).cost_s

    def fits(self, stages) -> bool:
        room = {each.name: each.room_bytes for each in self.nodes}
        return all(stage_bytes(self.model, self.kv_bytes, layers) <= room[name] for name, layers in stages)

    def tried(self) -> float:
        """The least cost of all subsets, orders and cuts, written down anew; infinite where nothing fits."""
        num_layers, chunks, tokens = len(self.model.layers), self.workload.num_chunks, self.workload.generated_tokens
        ends = sorted({*self.cuts} | {num_layers})
        best = math.inf

        def go_on(route, start, prefill, slowest, decode):
            nonlocal best
            here = route[-1]
            for end in (end for end in ends if end > start):
                last = end == num_layers
                needed = sum(self.model.layers[start:end]) + sum(self.kv_bytes[start:end])
                needed += self.model.embedding if start == 0 else 0
                needed += self.model.head if last else 0
                needed += self.model.embedding if last and start > 0 and self.model.tied else 0
                if needed > here.room_bytes:
                    continue
                chunk = sum(here.chunk_s[start:end]) + (here.embed_chunk_s if start == 0 else 0)
                step = sum(here.decode_s[start:end]) + (here.embed_decode_s if start == 0 else 0)
                if last:
                    chunk, step = chunk + here.head_chunk_s, step + here.head_decode_s
                    step += self.hops.decode_s(here.name, route[0].name) if len(route) > 1 else 0
                    total = prefill + chunk + (chunks - 1) * max(slowest, chunk) + tokens * (decode + step)
                    best = min(best, total)
                    continue
                for following in self.nodes:
                    if following not in route:
                        passed = chunk + self.hops.chunk_s(here.name, following.name)
                        stepped = step + self.hops.decode_s(here.name, following.name)
                        go_on([*route, following], end, prefill + passed, max(slowest, passed), decode + stepped)

        for first in self.nodes:
            go_on([first], 0, 0.0, 0.0, 0.0)
        return best


def drawn(seed: int, *, num_nodes: int | None = None, num_layers: int | None = None) -> Instance:
    """Unlike nodes, layers and links; every other one with rooms that bind, every third with few cuts, tied or not."""
    draw = random.Random(seed)
    num_layers, num_nodes = num_layers or draw.randint(4, 7), num_nodes or draw.randint(3, 4)
    model = sizes(
        [draw.randint(5, 30) for _ in range(num_layers)],
        embedding=draw.randint(0, 40),
        head=draw.randint(0, 10),
        tied=draw.random() < 0.5,
    )
    kv_bytes = [draw.choice([0, 1, 4, 9]) for _ in range(num_layers)]
    whole = model.total + sum(kv_bytes)
    work = [draw.uniform(0.5, 2) for _ in range(num_layers)]
    nodes = []
    for index in range(num_nodes):
        chunk, step = draw.uniform(0.2, 2), draw.uniform(0.005, 0.05)
        room = int(whole * draw.uniform(0.15, 0.9)) if seed % 2 else 10**12
        ends = (draw.uniform(0, 0.02), draw.uniform(0, 0.5)), (draw.uniform(0, 0.05), draw.uniform(0, 0.5))
        decode_s, chunk_s = [step * part for part in work], [chunk * part for part in work]
        nodes.append(node(f"node-{index}", decode_s, chunk_s, room=room, embed=ends[0], head=ends[1]))
    pairs = [pair for pair in itertools.permutations([each.name for each in nodes], 2) if draw.random() < 0.8]
    hops = HopCosts(
        default_decode_s=0.01,
        default_chunk_s=0.5,
        pair_decode_s={pair: draw.uniform(0, 0.05) for pair in pairs},
        pair_chunk_s={pair: draw.uniform(0, 1) for pair in pairs},
    )
    workload = Workload(num_chunks=draw.choice([1, 2, 5, 40]), generated_tokens=draw.choice([0, 3, 50, 400]))
    cuts = [cut for cut in range(1, num_layers) if seed % 3 or draw.random() < 0.6]
    return Instance(model, kv_bytes, nodes, hops, workload, cuts)


@functools.cache
def least_cost(seed: int) -> float:
    """Of everything that can be tried, which takes a while, and is asked for twice."""
    return drawn(seed).tried()


def alike(count: int, num_layers: int, workload: Workload, *, hops=FREE, room=10**12) -> Instance:
    """Nodes that all take a second for a layer of a chunk and 0.1 for one of a token; layers of 10 bytes."""
    nodes = [node(f"node-{index}", [0.1] * num_layers, [1.0] * num_layers, room=room) for index in range(count)]
    return Instance(sizes([10] * num_layers), [0] * num_layers, nodes, hops, workload, range(1, num_layers))


@pytest.mark.parametrize("hundred", range(10))
def test_no_split_of_all_is_cheaper(hundred):
    feasible = 0
    for seed in range(100 * hundred, 100 * hundred + 100):
        instance = drawn(seed)
        found, least = instance.solve(), least_cost(seed)
        if found is None:
            assert least == math.inf, seed
            continue
        feasible += 1
        assert found.cost_s == pytest.approx(least, rel=1e-9), seed
        assert found.cost_s == instance.cost(found.stages)
        assert instance.fits(found.stages), seed
    assert 60 < feasible < 100


@pytest.mark.parametrize(("num_nodes", "num_layers"), [(1, 6), (2, 9), (5, 6), (6, 6), (8, 5)])
def test_no_split_over_up_to_eight_nodes_is_cheaper(num_nodes, num_layers):
    for seed in range(12):
        instance = drawn(seed, num_nodes=num_nodes, num_layers=num_layers)
        found, least = instance.solve(), instance.tried()
        assert (found.cost_s if found else math.inf) == pytest.approx(least, rel=1e-9), seed


def test_parts_of_the_cost_make_up_the_whole():
    for seed in range(0, 40, 2):
        instance = drawn(seed)
        found = instance.solve()
        assert found.cost_s == pytest.approx(found.prefill_s + instance.workload.generated_tokens * found.decode_s)
        assert (
            cost_of(found.stages, instance.nodes, instance.hops, instance.workload).bottleneck_s == found.bottleneck_s
        )


def test_cost_is_the_first_chunk_through_all_stages_the_others_behind_the_slowest_and_a_round_for_each_token():
    nodes = [
        node("a", [0.1, 0.2, 0.3], [1, 2, 3], embed=(0.01, 0.5), head=(9.0, 9.0)),
        node("b", [0.4, 0.5, 0.6], [4, 5, 6], embed=(9.0, 9.0), head=(0.02, 0.25)),
    ]
    hops = HopCosts(
        default_decode_s=0.001,
        default_chunk_s=0.125,
        pair_decode_s={("b", "a"): 0.002},
        pair_chunk_s={("b", "a"): 77.0},
    )
    cost = cost_of(
        [("a", LayerRange(0, 2)), ("b", LayerRange(2, 3))], nodes, hops, Workload(num_chunks=4, generated_tokens=10)
    )
    of_a, of_b = 0.5 + 1 + 2 + 0.125, 6 + 0.25
    assert cost.bottleneck_s == of_b
    assert cost.prefill_s == pytest.approx(of_a + of_b + 3 * of_b)
    assert cost.decode_s == pytest.approx(0.01 + 0.1 + 0.2 + 0.001 + 0.6 + 0.02 + 0.002)
    assert cost.cost_s == pytest.approx(cost.prefill_s + 10 * cost.decode_s)


def test_one_stage_has_no_hop():
    hops = HopCosts(default_decode_s=5.0, default_chunk_s=5.0)
    instance = alike(2, 4, Workload(num_chunks=3, generated_tokens=10), hops=hops)
    assert instance.cost([("node-0", LayerRange(0, 4))]) == pytest.approx(3 * 4 + 10 * 0.4)


def test_many_chunks_are_shared_and_many_tokens_stay_on_the_fastest_node():
    hops = HopCosts(default_decode_s=0.01, default_chunk_s=0.01)
    prefill = alike(4, 8, Workload(num_chunks=100, generated_tokens=1), hops=hops).solve()
    assert [layers for _, layers in prefill.stages] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    decode = alike(4, 8, Workload(num_chunks=1, generated_tokens=1000), hops=hops).solve()
    assert decode.stages == (("node-0", LayerRange(0, 8)),)


def test_node_whose_links_are_slow_is_left_out():
    slow = {pair: 10.0 for pair in itertools.permutations(["node-0", "node-1", "node-2"], 2) if "node-1" in pair}
    hops = HopCosts(default_decode_s=0.0, default_chunk_s=0.1, pair_chunk_s=slow)
    found = alike(3, 6, Workload(num_chunks=50, generated_tokens=1), hops=hops).solve()
    assert {name for name, _ in found.stages} == {"node-0", "node-2"}


@pytest.mark.parametrize("exact_up_to", [8, 0])
def test_nodes_without_a_link_do_not_follow_each_other(exact_up_to):
    hops = HopCosts(
        default_decode_s=0.0,
        default_chunk_s=math.inf,
        pair_chunk_s={("node-2", "node-0"): 0.5, ("node-0", "node-1"): 0.5},
    )
    for tokens in (0, 10):
        instance = alike(3, 6, Workload(num_chunks=100, generated_tokens=tokens), hops=hops)
        found = instance.solve(exact_up_to=exact_up_to)
        assert [name for name, _ in found.stages] == ["node-2", "node-0", "node-1"]
    alone = alike(3, 6, instance.workload, hops=HopCosts(default_decode_s=math.inf, default_chunk_s=0.0))
    assert len(alone.solve(exact_up_to=exact_up_to).stages) == 1


@pytest.mark.parametrize("exact_up_to", [8, 0])
def test_split_keeps_to_rooms_with_kv_and_tied_embeddings(exact_up_to):
    model = sizes([10] * 4, embedding=20, head=1, tied=True)
    rooms = {"small": 2 * 12, "first": 2 * 12 + 20 - 1, "last": 12 + 21}
    nodes = [node(name, [1.0] * 4, [1.0] * 4, room=room) for name, room in rooms.items()]
    instance = Instance(model, [2] * 4, nodes, FREE, Workload(num_chunks=1, generated_tokens=1), range(1, 4))
    found = instance.solve(exact_up_to=exact_up_to)
    assert found.stages[1] == ("small", LayerRange(1, 3))
    assert instance.fits(found.stages)
    assert [stage_bytes(model, [2] * 4, layers) for _, layers in found.stages] == [32, 24, 33]


@pytest.mark.parametrize("exact_up_to", [8, 0])
def test_nothing_is_found_where_nothing_fits(exact_up_to):
    workload = Workload(num_chunks=2, generated_tokens=2)
    assert alike(3, 8, workload, room=29).solve(exact_up_to=exact_up_to) is None
    assert alike(4, 8, workload, room=29).solve(exact_up_to=exact_up_to) is not None
    assert alike(0, 8, workload).solve(exact_up_to=exact_up_to) is None


@pytest.mark.parametrize("exact_up_to", [8, 0])
def test_model_without_cuts_goes_to_the_best_node_that_has_room(exact_up_to):
    nodes = [node("fast", [1.0] * 3, [1.0] * 3, room=29), *(node(name, [2.0] * 3, [2.0] * 3) for name in ("a", "b"))]
    instance = Instance(sizes([10] * 3), [0] * 3, nodes, FREE, Workload(num_chunks=9, generated_tokens=9), [])
    assert instance.solve(exact_up_to=exact_up_to).stages == (("a", LayerRange(0, 3)),)


def test_of_splits_that_cost_the_same_the_first_node_and_the_fewest_stages_are_taken_every_time():
    instance = alike(4, 6, Workload(num_chunks=1, generated_tokens=10))
    assert {instance.solve().stages for _ in range(3)} == {(("node-0", LayerRange(0, 6)),)}


def test_work_that_takes_no_time_is_split_too():
    nodes = [node(name, [0.0] * 4, [0.0] * 4, room=25) for name in "ab"]
    instance = Instance(sizes([10] * 4), [0] * 4, nodes, FREE, Workload(num_chunks=5, generated_tokens=5), range(1, 4))
    assert instance.solve().cost_s == 0


def test_bounded_search_is_near_the_best_of_all_and_misses_none_that_fits():
    shares = []
    for seed in range(200):
        instance = drawn(seed)
        found, least = instance.solve(exact_up_to=0), least_cost(seed)
        assert (found is None) == (least == math.inf), seed
        if found is not None:
            assert instance.fits(found.stages)
            shares.append(found.cost_s / least)
    assert min(shares) > 1 - 1e-9
    assert sum(share < 1.1 for share in shares) >= 0.95 * len(shares)


def test_bounded_search_is_near_the_best_over_eight_nodes():
    for seed in range(6):
        instance = drawn(seed, num_nodes=8, num_layers=30)
        exact, bounded = instance.solve(), instance.solve(exact_up_to=0)
        assert exact.cost_s * (1 - 1e-9) <= bounded.cost_s < 1.1 * exact.cost_s, seed


def test_many_nodes_share_a_model_that_only_most_of_them_hold():
    hops = HopCosts(default_decode_s=0.001, default_chunk_s=0.1)
    found = alike(20, 36, Workload(num_chunks=8, generated_tokens=8), hops=hops, room=20).solve()
    assert len(found.stages) == len({name for name, _ in found.stages}) == 18


def test_input_of_another_length_is_refused():
    instance = alike(2, 4, Workload(num_chunks=1, generated_tokens=1))
    with pytest.raises(ValueError, match="kv_bytes must be given for each of the 4 layers, not for 3"):
        optimal_split(instance.model, [0] * 3, instance.nodes, FREE, instance.workload, [])
    with pytest.raises(ValueError, match="late: decode_s and chunk_s"):
        optimal_split(instance.model, [0] * 4, [node("late", [1.0] * 4, [1.0] * 3)], FREE, instance.workload, [])
    with pytest.raises(ValueError, match="names of their own"):
        optimal_split(instance.model, [0] * 4, instance.nodes[:1] * 2, FREE, instance.workload, [])


@pytest.mark.parametrize(
    "workload", [Workload(num_chunks=0, generated_tokens=1), Workload(num_chunks=1, generated_tokens=-1)]
)
def test_workload_without_chunks_or_with_fewer_than_no_tokens_is_refused(workload):
    with pytest.raises(ValueError, match="at least one chunk"):
        alike(2, 4, workload).solve()


def test_layers_of_very_unlike_size_are_no_endless_search():
    nodes = [
        node(name, [0.0] * 6, [1e9, 1e-3, 1e-3, 1.0, 1.0, part]) for name, part in (("a", 1.0), ("b", 1.0 + 1e-13))
    ]
    instance = Instance(sizes([1] * 6), [0] * 6, nodes, FREE, Workload(num_chunks=9, generated_tokens=0), range(1, 6))
    assert instance.solve().cost_s == pytest.approx(instance.tried(), rel=1e-12)


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [("node-0", LayerRange(0, 3))],
        [("node-0", LayerRange(1, 4))],
        [("node-0", LayerRange(0, 1)), ("node-1", LayerRange(2, 4))],
        [("node-0", LayerRange(0, 4)), ("node-1", LayerRange(4, 4))],
    ],
)
def test_cost_of_what_does_not_cover_the_layers_is_refused(stages):
    with pytest.raises(ValueError, match="stages must"):
        alike(2, 4, Workload(num_chunks=1, generated_tokens=1)).cost(stages)


@pytest.mark.parametrize("names", [("node-0", "node-0"), ("node-0", "node-7")])
def test_cost_of_a_node_twice_or_unknown_is_refused(names):
    with pytest.raises(ValueError, match="known nodes, each once"):
        alike(2, 4, Workload(num_chunks=1, generated_tokens=1)).cost(
            [(names[0], LayerRange(0, 2)), (names[1], LayerRange(2, 4))]
        )
