"""What the cluster says of itself, and that it cannot say that all is well while nothing moves."""

import asyncio

import msgspec

from cluster.membership.member import WorkerLoad
from cluster.planning.events import EventLog
from cluster.serving.health import Health
from protocol.messages import Heartbeat, PrefillProgress
from protocol.values import Route
from strategy.chunking import ChunkCost
from strategy.cost import RouteCosts
from strategy.stage_speed import Hop, StageSpeed
from tests.support.fake_cluster import Client, FakeCluster, plan_of, ready_member, service_of, settle, tokens_request
from tests.support.virtual_time import run


def beat_of(worker, **fields):
    zeros = dict.fromkeys(Heartbeat.__struct_fields__, 0)
    return Heartbeat(**zeros | {"worker": worker, "oldest_step_s": None, "sent_bytes": {}} | fields)


def member_of(name, *, steps_per_s=0.0, **beat):
    member = ready_member(name)
    member.heartbeat = beat_of(name, **beat)
    member.load = WorkerLoad(busy_share=0.0, steps_per_s=steps_per_s, batch_size=0.0, queue=0)
    return member


# --- Health


def test_nothing_owed_is_never_stalled():
    assert Health().stall([member_of("alpha")], None, 1e6) is None


def test_what_is_owed_for_ten_seconds_without_a_step_is_stalled():
    health = Health()
    health.step_ended(100.0)
    members = [member_of("alpha", oldest_step_s=3.0), member_of("beta", oldest_step_s=12.5), member_of("gamma")]
    assert health.stall(members, 104.0, 113.9) is None
    stall = health.stall(members, 104.0, 114.0)
    assert (stall.silent_s, stall.worker, stall.oldest_step_s) == (10.0, "beta", 12.5)
    health.step_ended(114.0)
    assert health.stall(members, 104.0, 115.0) is None


def test_step_that_no_head_told_of_counts_by_its_heartbeat():
    health = Health()
    assert health.stall([member_of("alpha", steps_per_s=0.5)], 0.0, 100.0) is None
    assert health.stall([member_of("alpha")], 0.0, 109.0) is None
    assert health.stall([member_of("alpha")], 0.0, 110.0) is not None


def test_lost_step_leaves_everybody_idle_and_is_stalled_all_the_same():
    stall = Health().stall([member_of("alpha")], 0.0, 50.0)
    assert (stall.worker, stall.oldest_step_s) == (None, None)


# --- through the service


def shown(service):
    report = service.health()
    return report.serves, msgspec.to_builtins(report)


def test_health_follows_the_plan(prompts):
    async def scenario():
        cluster = FakeCluster(None)
        service = service_of(prompts, cluster)
        assert shown(service) == (False, {"state": "starting"})
        cluster.begin(plan_of())
        assert shown(service) == (True, {"state": "ready"})
        cluster.replan("gamma")
        assert shown(service) == (True, {"state": "degraded"})
        cluster.end("beta")
        assert shown(service) == (False, {"state": "starting"})
        await service.drain(0)
        assert shown(service) == (False, {"state": "stopped"})

    run(scenario())


def test_request_whose_steps_do_not_end_makes_the_cluster_stalled_until_one_does(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        await asyncio.sleep(60)
        client = Client(service, tokens_request())
        await client.routed()
        await asyncio.sleep(9)
        assert shown(service) == (True, {"state": "ready"})
        await asyncio.sleep(1)
        cluster.members["beta"].heartbeat = beat_of("beta", oldest_step_s=9.5)
        stalled = {"state": "stalled", "silent_s": 10.0, "worker": "beta", "oldest_step_s": 9.5}
        assert shown(service) == (False, stalled)
        cluster.listener.progress(PrefillProgress(sequence=1, processed=1, total=5))
        assert shown(service)[0]
        await client.leave()
        await asyncio.sleep(60)
        assert shown(service)[0]

    run(scenario())


def test_client_that_does_not_read_its_finished_answer_is_no_stall(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        events = service.generate(tokens_request())
        await anext(events)
        cluster.report(1, (21,), "length")
        await asyncio.sleep(60)
        assert shown(service) == (True, {"state": "ready"})
        await events.aclose()

    run(scenario())


def test_requests_that_wait_for_a_plan_make_it_stalled(prompts):
    async def scenario():
        service = service_of(prompts, FakeCluster(None))
        client = Client(service, tokens_request())
        await asyncio.sleep(10)
        assert shown(service)[1]["state"] == "stalled"
        await client.leave()

    run(scenario())


# --- status


def test_status_has_every_documented_key(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of(epoch=7))
        cluster.members["beta"].heartbeat = beat_of("beta", kv_bytes=5, weights_bytes=40, oldest_step_s=0.2)
        cluster.events.add("worker alpha joined")
        status = msgspec.json.decode(msgspec.json.encode(service_of(prompts, cluster).status()))
        assert (status["state"], status["epoch"], status["api"]) == ("ready", 7, "http://here")
        assert (status["mode"], status["policy"], status["coordinator"]) == ("auto", "thresholds", {"pid": 4711})
        assert {"id": "tiny", "layers": 3, "bytes": 40}.items() <= status["model"].items()
        assert [worker["layers"] for worker in status["workers"]] == [[0, 1], [1, 2], [2, 3]]
        assert [worker["holds_full_model"] for worker in status["workers"]] == [True, True, False]
        assert status["workers"][1]["memory"] == {
            "limit_bytes": 100,
            "weights_bytes": 40,
            "read_bytes": 0,
            "kv_bytes": 5,
        }
        assert [worker["oldest_step_s"] for worker in status["workers"]] == [None, 0.2, None]
        assert {"name", "host", "pid", "state", "link", "cache", "load"} <= status["workers"][0].keys()
        assert status["requests"] == dict.fromkeys(("running", "waiting", "finished", "failed", "resumed"), 0)
        assert status["events"] == [{"at": 1_700_000_000.0, "what": "worker alpha joined"}]

    run(scenario())


def test_measured_workers_are_shown_with_the_speed_of_their_stage_and_of_the_full_model(prompts):
    def costs_of(route, *steps_s):
        stages = tuple(
            StageSpeed(
                decode=((1, step_s),),
                decode_context_s=0.0,
                chunk=ChunkCost(0.0, step_s / 10),
                chunk_context_s=0.0,
                payload_bytes=1,
            )
            for step_s in steps_s
        )
        return RouteCosts(route=route, stages=stages, hops=(Hop(0.0, 1.0),) * len(stages))

    async def scenario():
        plan = plan_of(full=("alpha",))
        alone = Route(("alpha",))
        costs = {plan.pipeline: costs_of(plan.pipeline, 0.1, 0.2, 0.4), alone: costs_of(alone, 0.5)}
        cluster = FakeCluster(msgspec.structs.replace(plan, costs=costs))
        speeds = [worker.speed for worker in service_of(prompts, cluster).status().workers]
        assert [(speed.stage.decode_tokens_per_s, speed.stage.prefill_tokens_per_s) for speed in speeds] == [
            (10.0, 100.0),
            (5.0, 50.0),
            (2.5, 25.0),
        ]
        assert [speed.full_model and speed.full_model.decode_tokens_per_s for speed in speeds] == [2.0, None, None]
        assert [worker.speed for worker in service_of(prompts, FakeCluster(plan)).status().workers] == [None] * 3

    run(scenario())


def test_lost_worker_is_shown_as_lost_and_without_memory(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        cluster.replan("beta")
        shown = msgspec.to_builtins(service.status())["workers"][1]
        assert (shown["state"], shown["holds_full_model"], shown["layers"]) == ("lost", False, None)
        assert shown["memory"]["weights_bytes"] == shown["memory"]["kv_bytes"] == 0

    run(scenario())


def test_model_stays_known_while_no_plan_is_in_force(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        cluster.end("alpha")
        await settle()
        assert (service.status().state, service.status().model.layers) == ("starting", 3)

    run(scenario())


def test_events_are_the_last_hundred_with_their_time():
    times = iter(range(1000))
    events = EventLog(clock=lambda: next(times))
    for number in range(150):
        events.add(f"{number}")
    assert (len(events.latest), events.latest[0].what, events.latest[-1].at) == (100, "50", 149)
