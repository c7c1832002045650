"""What an open dashboard is told, and what somebody without a key is not."""

import asyncio
import json
import time

import pytest

from cluster.api.dashboard.broadcast import MOST_FEEDS
from cluster.api.dashboard.outbox import MOST_BYTES
from cluster.serving.findings import Finding
from cluster.settings import KeySettings
from protocol.messages import StepsRecorded
from protocol.step_reports import StepReport, encode_report
from tests.cluster.api.dashboard.watched import watching
from tests.support.fake_cluster import plan_of, settle
from tests.support.feeds import Feed
from tests.support.virtual_time import run

ROW = {
    "id": "1",
    "state": "running",
    "strategy": "distributed-no-cache",
    "reason": "5 prompt tokens and 9 to generate are at most 100 and 50: distributed without a KV cache",
    "workers": ["alpha", "beta", "gamma"],
    "key": None,
    "prompt_tokens": 5,
    "cached_tokens": 0,
    "completion_tokens": 0,
    "max_tokens": 9,
    "ttft_s": None,
    "tokens_per_s": None,
    "predicted": None,
    "total_s": None,
    "resumed": 0,
    "finish_reason": None,
    "waits_for": None,
}


def without_times(row):
    return {name: value for name, value in row.items() if name != "arrived_at"}


def test_page_that_opens_is_told_what_there_is(prompts):
    @watching
    async def scenario(watched):
        client = watched.ask()
        await client.routed()
        feed = await watched.feed()
        assert (feed.status, feed.headers["content-type"]) == (200, "text/event-stream")
        (hello,) = feed.of("hello")
        assert hello["history"] == []
        assert (hello["may_act"], hello["asks_for_key"], hello["step_s"]) == (True, False, 5.0)
        (status,) = feed.of("status")
        assert status == json.loads(json.dumps(status)) | {"state": "ready", "api": "http://here"}
        assert [worker["name"] for worker in status["workers"]] == ["alpha", "beta", "gamma"]
        (told,) = feed.of("requests")
        assert [without_times(row) for row in told["requests"]] == [ROW]
        assert told["requests"][0]["arrived_at"] == pytest.approx(time.time(), abs=3600)
        assert told["ended"] == []
        await client.leave()
        await feed.leave()

    run(scenario(prompts))


def test_what_happens_to_a_request_is_told_until_it_ended_and_then_once(prompts):
    @watching
    async def scenario(watched):
        feed = await watched.feed()
        client = watched.ask()
        await client.routed()
        await asyncio.sleep(0.6)
        watched.cluster.report(1, (20, 21))
        await asyncio.sleep(1)
        watched.cluster.report(1, (22,), "length")
        await client.task
        await asyncio.sleep(5)
        told = feed.of("requests")[1:]
        assert [[row["completion_tokens"] for row in each["requests"]] for each in told] == [[0], [2], []]
        assert [[row["state"] for row in each["ended"]] for each in told] == [[], [], ["finished"]]
        (ended,) = told[-1]["ended"]
        assert (ended["finish_reason"], ended["completion_tokens"], ended["resumed"]) == ("length", 3, 0)
        assert ended["ttft_s"] == pytest.approx(0.6)
        assert ended["total_s"] == pytest.approx(1.6)
        assert ended["tokens_per_s"] == pytest.approx(2)
        later = await watched.feed()
        assert later.of("requests") == [{"requests": [], "ended": [ended]}]
        await feed.leave()
        await later.leave()

    run(scenario(prompts))


def test_page_that_opens_between_two_looks_hears_of_an_end_once(prompts):
    @watching
    async def scenario(watched):
        earlier = await watched.feed()
        client = watched.ask()
        await client.routed()
        watched.cluster.report(1, (20,), "stop")
        await client.task
        later = await watched.feed()
        await asyncio.sleep(3)
        for feed in (earlier, later):
            assert [row["id"] for told in feed.of("requests") for row in told["ended"]] == ["1"]
            await feed.leave()

    run(scenario(prompts))


def test_lost_worker_is_told_at_once_and_what_waits_for_it(prompts):
    @watching
    async def scenario(watched):
        feed = await watched.feed()
        client = watched.ask(strategy="distributed-cached")
        await client.routed()
        await asyncio.sleep(0.6)
        num_told = len(feed.of("status"))
        watched.cluster.end("beta")
        watched.cluster.events.add("lost beta: its process ended")
        await asyncio.sleep(0.5)
        first = feed.of("status")[num_told]
        assert first["state"] == "starting"
        assert [worker["state"] for worker in first["workers"]] == ["ready", "lost", "ready"]
        assert first["events"][-1]["what"] == "lost beta: its process ended"
        (row,) = feed.of("requests")[-1]["requests"]
        assert (row["state"], row["waits_for"]) == ("reassigned", "beta")
        watched.cluster.begin(plan_of(epoch=2))
        await asyncio.sleep(1)
        (row,) = feed.of("requests")[-1]["requests"]
        assert (row["id"], row["state"], row["waits_for"], row["resumed"]) == ("1", "running", None, 1)
        await client.leave()
        await asyncio.sleep(1)
        (ended,) = feed.of("requests")[-1]["ended"]
        assert (ended["state"], ended["finish_reason"]) == ("cancelled", "left")
        await feed.leave()

    run(scenario(prompts))


def test_status_comes_each_second_where_nothing_happens(prompts):
    @watching
    async def scenario(watched):
        feed = await watched.feed()
        await asyncio.sleep(10.1)
        assert len(feed.of("status")) == 11
        assert len(feed.of("requests")) == 1
        await feed.leave()

    run(scenario(prompts))


def test_points_come_each_five_seconds_and_who_opens_later_has_them_all(prompts):
    @watching
    async def scenario(watched):
        feed = await watched.feed()
        client = watched.ask()
        await client.routed()
        watched.cluster.report(1, (20, 21, 22), "length")
        await client.task
        await asyncio.sleep(10.1)
        first, second = feed.of("point")
        assert (first["finished"], first["tokens_per_s"], first["prompt_tokens_per_s"]) == (1, 0.6, 1.0)
        assert (second["finished"], second["tokens_per_s"], second["ttft_p50_s"]) == (0, 0, None)
        later = await watched.feed()
        assert later.of("hello")[0]["history"] == [first, second]
        await feed.leave()
        await later.leave()

    run(scenario(prompts))


def test_who_has_no_key_sees_no_names_of_clients_no_addresses_and_may_not_act(prompts):
    @watching
    async def scenario(watched):
        client = watched.ask(key="ann", client="digest 10.0.0.7")
        await client.routed()
        watched.cluster.events.add("lost beta: no answer from 10.0.0.2")
        without, known = await watched.feed(), await watched.feed(Authorization="Bearer key-a")
        for feed, may_act, key in ((without, False, None), (known, True, "ann")):
            (hello,) = feed.of("hello")
            assert (hello["may_act"], hello["asks_for_key"]) == (may_act, True)
            assert feed.of("requests")[0]["requests"][0]["key"] == key
        assert b"10.0.0" not in without.body
        assert b"http://here" not in without.body
        assert b"10.0.0.7" not in known.body
        assert known.of("status")[0]["events"][-1]["what"] == "lost beta: no answer from 10.0.0.2"
        assert without.of("status")[0]["events"][-1]["what"] == "lost beta"
        await asyncio.sleep(2)
        assert b"ann" not in without.body
        assert len(without.of("status")) == len(known.of("status"))
        wrong = await watched.feed(Authorization="Bearer key-b")
        assert wrong.of("hello")[0]["may_act"] is False
        for feed in (without, known, wrong):
            await feed.leave()
        await client.leave()

    run(scenario(prompts, keys=(KeySettings(name="ann", key="key-a"),)))


def test_pages_of_other_sites_are_told_nothing(prompts):
    @watching
    async def scenario(watched):
        feed = await watched.feed(origin="https://example.org")
        await feed.task
        assert feed.status == 403

    run(scenario(prompts))


def test_nothing_is_looked_at_while_no_page_is_open(prompts):
    @watching
    async def scenario(watched):
        asked = []
        status = watched.service.status
        watched.service.status = lambda: asked.append(1) or status()
        await asyncio.sleep(30)
        assert not asked
        feed = await watched.feed()
        await asyncio.sleep(1)
        await feed.leave()
        assert asked
        asked.clear()
        await asyncio.sleep(30)
        assert not asked
        assert len(asyncio.all_tasks()) == 2  # this one, and what keeps the last hour

    run(scenario(prompts))


def test_slow_reader_is_let_go_and_others_are_told_all(prompts):
    @watching
    async def scenario(watched):
        slow, quick = await watched.feed(), await watched.feed()
        slow.paused = True
        data = {"filling": "x" * (MOST_BYTES // 8)}
        for _ in range(10):
            watched.dashboard.broadcast.tell("point", data)
            await settle()
        await slow.task
        assert slow.was_aborted
        assert not quick.was_aborted
        assert quick.of("point") == [data] * 10
        await quick.leave()

    run(scenario(prompts))


def test_reader_that_pauses_for_a_moment_misses_nothing(prompts):
    @watching
    async def scenario(watched):
        feed = await watched.feed()
        feed.paused = True
        for number in range(20):
            watched.dashboard.broadcast.tell("point", {"number": number})
            await settle()
        feed.read_on()
        await settle()
        assert [point["number"] for point in feed.of("point")] == list(range(20))
        await feed.leave()

    run(scenario(prompts))


def test_stopping_server_ends_feeds(prompts):
    @watching
    async def scenario(watched):
        feed = await watched.feed()
        watched.stopping.set()
        await feed.task
        assert not feed.was_aborted

    run(scenario(prompts))


def test_many_feeds_without_a_key_leave_some_to_who_has_one(prompts):
    @watching
    async def scenario(watched):
        without = [await watched.feed() for _ in range(MOST_FEEDS)]
        statuses = [feed.status for feed in without]
        assert set(statuses) == {200, 503}
        known = await watched.feed(Authorization="Bearer k")
        assert known.status == 200
        for feed in (*without[: statuses.index(503)], known):
            await feed.leave()

    run(scenario(prompts, api_key="k"))


def test_feed_is_only_begun_for_who_reads_it(prompts):
    @watching
    async def scenario(watched):
        head = Feed(watched.app, method="HEAD")
        await head.task
        assert (head.status, head.body) == (200, b"")

    run(scenario(prompts))


def test_steps_pass_as_workers_say_them_while_a_page_is_open(prompts):
    @watching
    async def scenario(watched):
        steps = watched.cluster.inquiries.steps
        assert not steps.are_watched
        feed, other = await watched.feed(), await watched.feed()
        report = StepReport("alpha", ())
        steps.recorded(StepsRecorded(worker="alpha", clock=0.0), encode_report(report))
        await settle()
        assert feed.of("steps") == other.of("steps") == [{"worker": "alpha", "steps": [], "clock_ahead_s": 0.0}]
        await feed.leave()
        assert steps.are_watched
        await other.leave()
        assert not steps.are_watched

    run(scenario(prompts))


def test_reader_that_is_behind_is_spared_steps_and_stays(prompts):
    @watching
    async def scenario(watched):
        feed = await watched.feed()
        feed.paused = True
        said = StepsRecorded(worker="alpha", clock=0.0)
        for _ in range(5):
            watched.cluster.inquiries.steps.recorded(said, b'{"x":"%b"}' % (b"x" * (MOST_BYTES // 4)))
            await settle()
        watched.dashboard.broadcast.tell("point", {"number": 1})
        feed.read_on()
        await settle()
        assert 1 <= len(feed.of("steps")) < 5
        assert feed.of("point") == [{"number": 1}]
        await feed.leave()

    run(scenario(prompts))


def test_findings_come_at_once_and_when_they_change_and_name_no_addresses_to_who_has_no_key(prompts):
    @watching
    async def scenario(watched):
        without, known = await watched.feed(), await watched.feed(Authorization="Bearer k")
        await settle()
        for feed in (without, known):
            (told,) = feed.of("findings")
            assert {"level": "ok", "what": "Requests: 0 answered, 0 failed, 0 run, 0 wait.", "do": None} in told[
                "findings"
            ]
            assert (b"10.0.0.2" in feed.body) is (feed is known)
        watched.cluster.end("beta")
        watched.cluster.events.add("lost beta: its process ended")
        await asyncio.sleep(5.1)
        (_, told) = known.of("findings")
        assert {"level": "warning", "what": "beta is lost.", "do": "`./launch.sh logs beta` says why."} in told[
            "findings"
        ]
        later = await watched.feed(Authorization="Bearer k")
        assert later.of("findings") == [told]
        await asyncio.sleep(20)
        assert len(known.of("findings")) == 2
        watched.machine.append(Finding(verdict="warning", text="a cable is slow; use another"))
        await asyncio.sleep(60)
        assert {"level": "warning", "what": "A cable is slow.", "do": "Use another."} in known.of("findings")[-1][
            "findings"
        ]
        assert b"cable" not in without.body
        for feed in (without, known, later):
            await feed.leave()

    run(scenario(prompts, api_key="k"))
