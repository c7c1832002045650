"""How trials of recovery are planned and judged; a stand-in answers where a cluster would."""

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from benchmarks import kills, rank_losses
from benchmarks.support import trials
from benchmarks.support.arithmetic import longest_wait
from benchmarks.support.contenders import Cluster
from benchmarks.support.faults import KINDS, Struck
from benchmarks.support.trials import Outcome, Request, Trial, Undisturbed, random_requests, run_trial

REQUEST = Request(prompt=(5, 6), max_tokens=4, strategy="distributed-cached", end_tokens=(1,))
RIGHT = {REQUEST: Undisturbed(token_ids=(7, 8, 9, 10), ttft_s=0.01)}


class StandIn:
    """Streams four tokens, one for each time that it may, and says which ids they were."""

    def __init__(self, ids=(7, 8, 9, 10), resumed=1, silent_after=None):
        self.ids, self.resumed, self.silent_after = ids, resumed, silent_after
        self.asked = []

    async def answer(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        self.asked.append(msgspec.json.decode(await reader.readexactly(int(length.split(b":")[1]))))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for number in range(len(self.ids)):
            if number == self.silent_after:
                await reader.read()  # until the client gives up
            await asyncio.sleep(0.05)
            writer.write(b'data: {"choices":[{"text":"a"}]}\n\n')
            await writer.drain()
        accounts = {"choices": [], "tandem": {"token_ids": self.ids, "resumed": self.resumed}}
        writer.write(b"data: " + msgspec.json.encode(accounts) + b"\n\ndata: [DONE]\n\n")
        writer.close()

    def outcome(self, moment="decode", share=0.5):
        async def run():
            server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
            async with server:
                url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
                cluster = Cluster(url=url, home=Path(), model="m", pids=(), front_pid=0)
                trial = Trial(requests=(REQUEST,), moment=moment, share=share)
                return await run_trial(cluster, trial, RIGHT, time.perf_counter)

        return asyncio.run(run())[0]


def test_right_ids_are_right_and_the_stream_that_went_on_counts_as_affected():
    stand_in = StandIn()
    outcome = stand_in.outcome()
    assert outcome.verdict == "right"
    assert (outcome.moment, outcome.affected) == ("decode", True)
    assert 0.005 < outcome.wait_s < 1
    assert stand_in.asked[0]["logit_bias"] == {"1": -100.0}
    assert stand_in.asked[0]["prompt"] == [5, 6]


def test_other_ids_are_wrong():
    assert StandIn(ids=(7, 8, 9, 11)).outcome().verdict == "wrong"


def test_stream_without_tokens_hangs(monkeypatch):
    monkeypatch.setattr(trials, "HANG_S", 0.5)
    monkeypatch.setattr(trials, "_WATCH_EVERY_S", 0.05)
    outcome = StandIn(silent_after=2).outcome()
    assert outcome.verdict == "hung"
    assert len(outcome.token_at) == 2


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_waits_is_sent_around_the_moment(share):
    outcome = StandIn().outcome("waiting", share)
    assert outcome.verdict == "right"
    assert outcome.moment in ("waiting", "prefill")  # the latter where a slow machine struck late
    assert outcome.wait_s > 0


def test_longest_wait_begins_at_the_moment_asked_for():
    assert longest_wait([1.0, 2.0, 5.0, 6.0], 3.5) == 1.5
    assert longest_wait([1.0, 2.0, 5.0, 6.0], 0.0) == 3.0
    assert longest_wait([1.0], 2.0) is None


def test_requests_are_of_every_kind_and_the_same_for_one_seed():
    found = random_requests(random.Random(1), 60, longest=300)
    assert found == random_requests(random.Random(1), 60, longest=300)
    assert {request.strategy for request in found} == set(trials.STRATEGIES)
    assert {request.seed is None for request in found} == {True, False}
    assert max(len(request.prompt) for request in found) <= 300
    assert len({request.prompt for request in found}) == 60


def test_faults_are_of_every_kind_and_no_worker_dies_five_times_on_one_cluster():
    planned = kills.random_kills(random.Random(2), 40, 3, KINDS)
    assert Counter(kill.kind for kill in planned) == dict.fromkeys(KINDS, 10)
    groups = kills.sittings(planned)
    assert [kill for group in groups for kill in group] == list(planned)
    for group in groups:
        assert max(Counter(kill.victim for kill in group).values()) <= kills.MAX_DEATHS


def outcome(*token_at, resumed=True):
    return Outcome(
        strategy="distributed-cached",
        verdict="right",
        moment="decode",
        resumed=resumed,
        wait_s=None,
        silence_s=None,
        token_at=token_at,
        error=None,
    )


def found(kind, noticed, *outcomes):
    return kills.Found(
        setting="s",
        kind=kind,
        outcomes=outcomes,
        struck=Struck(at=10.0, unix=1000.0),
        noticed=noticed,
        read_bytes=0,
        alone_bytes=0,
        events=(),
        stuck=None,
    )


def test_pause_of_what_says_nothing_itself_counts_from_when_it_was_noticed():
    streams = (outcome(9.9, 14.5, 14.6), outcome(9.9, 10.1, resumed=False))
    assert found("killed", 10.1, *streams).pauses() == [4.5]
    assert found("stopped", 13.0, *streams).pauses() == [1.5]
    assert found("stopped", None, *streams).pauses() == []


def test_each_rank_is_lost_as_often_in_each_way_while_it_computes_with_the_others():
    losses = rank_losses.random_losses(random.Random(3), 4, 2)
    assert Counter((loss.kind, loss.rank) for loss in losses) == {
        (kind, rank): 2 for kind in ("killed", "stopped") for rank in (0, 1)
    }
    assert {(len(loss.trial.requests), loss.trial.moment == "waiting") for loss in losses} == {(2, False)}
    assert {request.strategy for loss in losses for request in loss.trial.requests} == {"tensor-parallel"}


def test_loss_of_a_rank_is_noticed_with_the_first_event_that_says_so():
    struck = Struck(at=10.0, unix=1000.0)
    said = [
        (999.0, "lost worker-0: before"),
        (1000.2, "joined worker-1"),
        (1000.3, "lost the link"),
        (1003.0, "lost worker-1"),
    ]
    events = [{"at": at, "what": what} for at, what in said]
    assert rank_losses.noticed_after({"events": events}, struck) == pytest.approx(0.3)
    assert rank_losses.noticed_after({"events": events[:2]}, struck) is None


def test_cluster_noticed_with_the_first_event_that_names_the_worker():
    events = [{"at": 990.0, "what": "worker-1 joined"}, {"at": 1003.0, "what": "worker-1 was lost"}]
    assert kills._noticed({"events": events}, "worker-1", Struck(at=10.0, unix=1000.0)) == 13.0
    assert kills._noticed({"events": events}, "worker-0", Struck(at=10.0, unix=1000.0)) is None


def worker(name, *, full, read):
    return {"name": name, "holds_full_model": full, "memory": {"weights_bytes": 7, "read_bytes": read}}


def test_reading_is_counted_on_survivors():
    before = {"workers": [worker("a", full=False, read=5), worker("b", full=False, read=6)]}
    after = {"workers": [worker("a", full=False, read=12), worker("b", full=False, read=0)]}
    assert kills._read_since(before, after, "b") == 7
    assert kills._held_alone(before, before["workers"][1]) == 7
    whole = {"workers": [worker("a", full=True, read=5), before["workers"][1]]}
    assert kills._held_alone(whole, whole["workers"][1]) == 0


def test_run_that_was_cut_short_is_taken_up_where_it_ended_and_another_one_is_not(tmp_path):
    file = tmp_path / "kills.journal"
    setting = kills.Setting(name="s", workers=(), kills=())
    first = kills.Journal(file, "200 faults")
    first.add(found("killed", 10.1, outcome(9.9, 14.5)))
    first.add(found("closed", 10.2))
    assert kills.Journal(file, "200 faults").of(setting) == first.of(setting)
    assert [each.kind for each in first.of(setting)] == ["killed", "closed"]
    assert kills.Journal(file, "100 faults").of(setting) == []
    assert kills.Journal(file, "200 faults").of(setting) == []
    first.end()
    assert list(tmp_path.iterdir()) == []
