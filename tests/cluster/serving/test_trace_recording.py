"""A trace as it is recorded: what whoever reads it gets, that it can be closed at any line, and the file of a whole life."""

import asyncio
import json
from contextlib import aclosing

import pytest

from cluster.serving import trace_recording
from cluster.serving.trace_recording import EVERY_S, TraceFile, record
from protocol.errors import UsageError
from protocol.messages import StepsRecorded
from protocol.step_reports import StepRecord, StepReport, encode_report
from tests.support.fake_cluster import Client, FakeCluster, plan_of, service_of, settle, tokens_request
from tests.support.virtual_time import run

T0 = 1_700_000_000.0


def report(worker, number=1):
    step = StepRecord(n=number, epoch=1, route="alpha", kind="decode", at=T0, s=0.1, tokens=1, requests=("1",))
    return encode_report(StepReport(worker, (step,)))


def tell(cluster, worker="alpha", number=1):
    cluster.inquiries.steps.recorded(StepsRecorded(worker=worker, clock=T0), report(worker, number))


async def recorded(service, seconds, chunks):
    async with aclosing(record(service, seconds, lambda: T0)) as lines:
        async for text in lines:
            chunks.append(text)


def events(chunks):
    return json.loads(b"".join(chunks))


def of(found, phase):
    return [event for event in found if event["ph"] == phase]


def test_trace_has_steps_requests_and_what_happened(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        chunks = []
        recording = asyncio.create_task(recorded(service, 3, chunks))
        await settle()
        assert cluster.inquiries.steps.are_watched
        client = Client(service, tokens_request(5, max_tokens=2))
        await client.routed()
        tell(cluster)
        cluster.events.add("lost a link")
        cluster.report(1, (7, 8), "length")
        await client.task
        await recording
        assert not cluster.inquiries.steps.are_watched
        return events(chunks)

    found = run(scenario())
    assert [event["name"] for event in of(found, "X")] == ["decode"]
    assert [event["name"] for event in of(found, "B")] == ["request 1"]
    assert of(found, "E")[0]["args"]["completion_tokens"] == 2
    assert [event["ph"] for event in found if event.get("id") == 1] == ["s", "f", "t"]
    assert "lost a link" in [event["name"] for event in of(found, "i")]


def test_whatever_was_read_is_a_trace_with_a_bracket_behind_it(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        chunks = []
        recording = asyncio.create_task(recorded(service_of(prompts, cluster), 2, chunks))
        for number in range(6):
            await asyncio.sleep(EVERY_S)
            if number % 2:
                tell(cluster, number=number)
        await recording
        return chunks

    chunks = run(scenario())
    assert len(chunks) >= 6
    lines = b"".join(chunks).splitlines(keepends=True)
    for num_lines in range(2, len(lines)):
        assert json.loads(b"".join(lines[:num_lines]) + b"]")
    assert json.loads(b"".join(lines))


def test_reader_that_takes_nothing_misses_reports_and_is_told_so(prompts, monkeypatch):
    monkeypatch.setattr(trace_recording, "MOST_UNREAD_BYTES", 3 * len(report("alpha")))

    async def scenario():
        cluster = FakeCluster(plan_of())
        async with aclosing(record(service_of(prompts, cluster), 5, lambda: T0)) as lines:
            chunks = [await anext(lines)]
            for number in range(5):
                tell(cluster, number=number)
            chunks += [await anext(lines)]
            tell(cluster, number=9)
            chunks += [await anext(lines)]
        return events([*chunks, b"]"])

    found = run(scenario())
    assert [event["args"]["step"] for event in of(found, "X")] == [0, 1, 9]
    assert [event["name"] for event in of(found, "i")] == ["3 reports are missing: the trace was not read"]


def test_recording_ends_with_the_cluster_and_with_its_reader(prompts):
    async def scenario():
        cluster = FakeCluster(plan_of())
        service = service_of(prompts, cluster)
        async with aclosing(record(service, 600, lambda: T0)) as lines:
            await anext(lines)
            assert cluster.inquiries.steps.are_watched
        assert not cluster.inquiries.steps.are_watched
        chunks = []
        recording = asyncio.create_task(recorded(service, 600, chunks))
        await settle()
        await service.drain(1)
        before = asyncio.get_running_loop().time()
        await recording
        assert asyncio.get_running_loop().time() - before <= 2 * EVERY_S
        assert events(chunks)

    run(scenario())


def kept(prompts, path, *, is_again, number, ends):
    """A coordinator's life with a trace file in which one step was done."""

    async def scenario():
        cluster = FakeCluster(plan_of())
        file = TraceFile(path, is_again=is_again, clock=lambda: T0)
        keeping = asyncio.create_task(file.keep(service_of(prompts, cluster)))
        await settle()
        tell(cluster, number=number)
        if ends:
            keeping.cancel()
            await asyncio.wait([keeping])
        else:
            await asyncio.sleep(2 * EVERY_S)
            left = path.read_bytes()
            keeping.cancel()
            await asyncio.wait([keeping])
            path.write_bytes(left)  # as if it had been killed

    run(scenario())


@pytest.mark.parametrize("ends", [True, False])
def test_coordinator_in_the_place_of_another_goes_on_with_its_file(prompts, tmp_path, ends):
    path = tmp_path / "trace.json"
    kept(prompts, path, is_again=False, number=1, ends=ends)
    kept(prompts, path, is_again=True, number=2, ends=True)
    found = json.loads(path.read_bytes())
    assert [event["args"]["step"] for event in of(found, "X")] == [1, 2]
    kept(prompts, path, is_again=False, number=3, ends=True)
    assert [event["args"]["step"] for event in of(json.loads(path.read_bytes()), "X")] == [3]
    assert path.stat().st_mode & 0o777 == 0o600


def test_file_that_cannot_be_written_is_named_with_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="choose another file with TANDEM_TRACE"):
        TraceFile(tmp_path / "nowhere" / "trace.json", is_again=False)


def test_full_disk_ends_the_trace_and_nothing_else(prompts, tmp_path, caplog):
    async def scenario():
        cluster = FakeCluster(plan_of())
        file = TraceFile(tmp_path / "trace.json", is_again=False)
        file._file.close()

        class Full:
            def write(self, _):
                raise OSError(28, "No space left on device")

            def close(self):
                pass

        file._file = Full()
        keeping = asyncio.create_task(file.keep(service_of(prompts, cluster)))
        await asyncio.sleep(3)
        assert not keeping.done()
        assert not cluster.inquiries.steps.are_watched
        keeping.cancel()
        await asyncio.wait([keeping])

    run(scenario())
    assert "the trace goes no further" in caplog.text
