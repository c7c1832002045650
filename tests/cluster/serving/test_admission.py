"""Who runs and who waits: first come, first served."""

import asyncio
import contextlib

import pytest

from cluster.serving.admission import Admission
from protocol.errors import QueueFull, Unavailable


class Visitor:
    """Holds a place until told to leave."""

    def __init__(self, admission: Admission):
        self.inside = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit(admission))

    async def _visit(self, admission: Admission) -> None:
        async with admission.place():
            self.inside = True
            await self._leave.wait()
        self.inside = False

    async def leave(self) -> None:
        self._leave.set()
        await self.task

    async def give_up(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def arrive(admission: Admission, count: int) -> list[Visitor]:
    visitors = []
    for _ in range(count):
        visitors.append(Visitor(admission))
        await settle()
    return visitors


def counts(admission: Admission) -> tuple[int, int]:
    return admission.num_running, admission.num_waiting


def test_places_are_given_in_order_of_arrival():
    async def scenario():
        admission = Admission(max_running=1, max_waiting=3)
        visitors = await arrive(admission, 4)
        for turn, visitor in enumerate(visitors):
            assert [other.inside for other in visitors] == [other is visitor for other in visitors]
            assert counts(admission) == (1, 3 - turn)
            await visitor.leave()
            await settle()
        assert counts(admission) == (0, 0)

    asyncio.run(scenario())


def test_newcomer_beyond_the_waiting_places_is_refused_with_a_time_to_come_back():
    async def scenario():
        admission = Admission(max_running=2, max_waiting=1)
        visitors = await arrive(admission, 4)
        with pytest.raises(QueueFull, match="2 requests run and 1 wait") as refused:
            await visitors[3].task
        assert refused.value.retry_after_s
        assert counts(admission) == (2, 1)
        for visitor in visitors[:3]:
            await visitor.leave()

    asyncio.run(scenario())


def test_caller_that_gives_up_while_waiting_frees_its_waiting_place():
    async def scenario():
        admission = Admission(max_running=1, max_waiting=2)
        first, second, third = await arrive(admission, 3)
        await second.give_up()
        assert counts(admission) == (1, 1)
        await first.leave()
        await settle()
        assert third.inside
        await third.leave()
        assert counts(admission) == (0, 0)

    asyncio.run(scenario())


def test_place_that_comes_just_as_its_caller_gives_up_goes_to_the_next():
    async def scenario():
        admission = Admission(max_running=1, max_waiting=2)
        first, second, third = await arrive(admission, 3)
        await first.leave()  # the place is given to the second, which has not run since
        await second.give_up()
        await settle()
        assert third.inside
        assert counts(admission) == (1, 0)
        await third.leave()
        assert counts(admission) == (0, 0)

    asyncio.run(scenario())


def test_error_in_the_body_frees_the_place():
    async def scenario():
        admission = Admission(max_running=1, max_waiting=0)
        with contextlib.suppress(ZeroDivisionError):
            async with admission.place():
                raise ZeroDivisionError
        assert counts(admission) == (0, 0)

    asyncio.run(scenario())


def test_close_refuses_who_waits_and_who_comes_but_lets_the_running_finish():
    async def scenario():
        admission = Admission(max_running=1, max_waiting=2)
        running, waiting = await arrive(admission, 2)
        admission.close()
        (late,) = await arrive(admission, 1)
        for refused in (waiting, late):
            with pytest.raises(Unavailable, match="stopping"):
                await refused.task
        assert running.inside
        drained = asyncio.create_task(admission.drained())
        await settle()
        assert not drained.done()
        await running.leave()
        await drained
        assert counts(admission) == (0, 0)

    asyncio.run(scenario())


def test_nothing_running_is_drained_at_once():
    asyncio.run(asyncio.wait_for(Admission(max_running=1, max_waiting=1).drained(), 1))


def test_waiter_cancelled_after_close_keeps_the_counts_right():
    async def scenario():
        admission = Admission(max_running=1, max_waiting=1)
        running, waiting = await arrive(admission, 2)
        admission.close()  # its refusal is set, but the waiter has not run since
        waiting.task.cancel()
        with pytest.raises((asyncio.CancelledError, Unavailable)):
            await waiting.task
        await running.leave()
        assert counts(admission) == (0, 0)

    asyncio.run(scenario())
