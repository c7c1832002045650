"""A group over TCP: the same bits on every rank, and a broken group for whoever waits, whatever becomes of the others.

In child processes, since each rank is a thread that runs MLX.
"""

import socket
import sys
import threading
from collections import Counter
from functools import partial

import mlx.core as mx
import pytest

from tests.support.in_child import run_cases, run_in_child
from workers.tensor import tcp_group
from workers.tensor.group import GroupBroken
from workers.tensor.tcp_group import _HEADER, AT_ONCE_BYTES, TcpGroup

NAMES = ("a", "b", "c", "d")


def connected(size, sent=lambda worker, num_bytes: None):
    """The ranks of a new group. sent: as of `TcpGroup`."""
    others = [{} for _ in range(size)]
    listener = socket.create_server(("127.0.0.1", 0))
    for higher in range(size):
        for lower in range(higher):
            others[higher][lower] = socket.create_connection(listener.getsockname())
            others[lower][higher] = listener.accept()[0]
    listener.close()
    return [TcpGroup(rank, others[rank], NAMES[:size], sent=sent) for rank in range(size)]


def on_ranks(groups, action):
    """What the action returns, or raises, on each rank."""
    found = {}

    def run(group):
        try:
            found[group.rank] = action(group)
        except GroupBroken as error:
            found[group.rank] = error

    threads = [threading.Thread(target=run, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in sorted(found)]


def bits(array):
    return bytes(memoryview(array))


def sums_have_the_same_bits_on_all_ranks():
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        for shape in ((3, 5), (2, AT_ONCE_BYTES), (0, 4)):
            parts = [mx.random.normal(shape, key=mx.random.key(rank)).astype(dtype) for rank in range(3)]
            mx.eval(parts)
            expected = (parts[0] + parts[1]) + parts[2]
            mx.eval(expected)

            def add(group, parts=parts):
                total = group.sum(parts[group.rank])
                mx.eval(total)
                return bits(total)

            assert on_ranks(connected(3), add) == [bits(expected)] * 3


def arrays_that_are_not_contiguous_are_summed_as_they_look():
    part = mx.arange(12).reshape(3, 4)
    mx.eval(part)
    assert on_ranks(connected(2), lambda group: group.sum(part.T).tolist()) == [(part.T * 2).tolist()] * 2


def parts_of_unequal_width_are_gathered_in_rank_order():
    def gather(group):
        mine = mx.full((2, (3, 0, 1)[group.rank]), group.rank, mx.bfloat16)
        return group.gather(mine).tolist(), group.gather(mine.T, axis=0).shape

    assert on_ranks(connected(3), gather) == [([[0.0, 0.0, 0.0, 2.0]] * 2, (4, 2))] * 3


def many_operations_of_changing_size_stay_in_step():
    def many(group):
        total = 0.0
        for number in range(200):
            total += group.sum(mx.full(((number * 997) % 40_000 + 1,), group.rank + number))[0].item()
        return total

    assert on_ranks(connected(4), many) == [sum(6 + 4 * number for number in range(200))] * 4


def what_goes_to_each_other_rank_is_counted():
    counted = Counter()

    def exchange(group):
        group.sum(mx.zeros(4))
        group.gather(mx.zeros((AT_ONCE_BYTES, group.rank), mx.int8))

    on_ranks(connected(3, lambda worker, num_bytes: counted.update({worker: num_bytes})), exchange)
    frames = {rank: 2 * _HEADER.size + 16 + AT_ONCE_BYTES * rank for rank in range(3)}
    assert counted == {NAMES[rank]: sum(frames.values()) - frames[rank] for rank in range(3)}


def ranks_at_different_operations_break_the_group():
    def differ(group):
        return group.sum(mx.zeros(4)) if group.rank else group.gather(mx.zeros(4))

    assert all(isinstance(each, GroupBroken) for each in on_ranks(connected(2), differ))


def sums_of_different_shapes_break_the_group():
    found = on_ranks(connected(2), lambda group: group.sum(mx.zeros(4 + group.rank)))
    assert all(isinstance(each, GroupBroken) for each in found)


def an_abort_from_another_thread_ends_a_wait_on_all_ranks():
    groups = connected(3)
    begun = threading.Event()

    def wait(group):
        begun.set()
        return group.sum(mx.zeros(4))

    breaker = threading.Thread(target=lambda: (begun.wait(), groups[0].abort()))
    breaker.start()
    found = on_ranks(groups[:2], wait)
    breaker.join()
    assert "it was given up" in str(found[0])
    assert "a is gone" in str(found[1])
    # Also who comes later; where both had sent their parts of this one, with the next.
    (found,) = on_ranks(groups[2:], lambda group: [wait(group), wait(group)])
    assert isinstance(found, GroupBroken)


def a_rank_that_is_lost_behind_its_part_is_missed_while_others_are_waited_for():
    groups = connected(3)
    part = mx.zeros(4)
    groups[0]._peers[0].send(_HEADER.pack(1, 1, 11, part.nbytes), memoryview(part).cast("B"))
    groups[0].close()
    (found,) = on_ranks(groups[1:2], lambda group: group.sum(part))
    assert "a is gone" in str(found)


def a_connection_on_which_the_other_host_answers_nothing_ends():
    (rank, other), again = connected(2), {}
    connection = rank._peers[0].connection
    option = partial(connection.getsockopt, socket.IPPROTO_TCP)
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle = socket.TCP_KEEPALIVE if sys.platform == "darwin" else socket.TCP_KEEPIDLE
    assert option(idle) + option(socket.TCP_KEEPINTVL) * option(socket.TCP_KEEPCNT) == 3
    assert not rank._peers[0].has_ended
    tcp_group._times_sent_again = lambda asked: again.get(asked, 0)
    again[connection] = 4
    (found,) = on_ranks([rank], lambda group: group.sum(mx.zeros(4)))
    assert "b is gone" in str(found)
    other.close()


def an_abort_ends_a_rank_that_nobody_reads_from():
    groups = connected(2)
    groups[0].waiting = groups[0].abort
    (found,) = on_ranks(groups[:1], lambda group: group.sum(mx.zeros(16 << 20)))
    assert isinstance(found, GroupBroken)


def a_reset_in_an_operation_breaks_the_group():
    groups = connected(2)
    connection = groups[1]._peers[0].connection
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    (found,) = on_ranks(groups[:1], lambda group: group.sum(mx.zeros(4)))
    assert "the tensor group a+b is broken: b is gone" in str(found)


def a_frame_that_ends_in_the_middle_breaks_the_group():
    groups = connected(2)
    connection = groups[1]._peers[0].connection
    connection.sendall(_HEADER.pack(1, 1, 11, 16)[:7])
    connection.shutdown(socket.SHUT_WR)
    (found,) = on_ranks(groups[:1], lambda group: group.sum(mx.zeros(4)))
    assert isinstance(found, GroupBroken)


def a_broken_group_stays_broken():
    groups = connected(2)
    groups[1].close()
    for _ in range(2):
        (found,) = on_ranks(groups[:1], lambda group: group.sum(mx.zeros(4)))
        assert "b is gone" in str(found)
    groups[0].close()


CASES = (
    sums_have_the_same_bits_on_all_ranks,
    arrays_that_are_not_contiguous_are_summed_as_they_look,
    parts_of_unequal_width_are_gathered_in_rank_order,
    many_operations_of_changing_size_stay_in_step,
    what_goes_to_each_other_rank_is_counted,
    ranks_at_different_operations_break_the_group,
    sums_of_different_shapes_break_the_group,
    an_abort_from_another_thread_ends_a_wait_on_all_ranks,
    a_rank_that_is_lost_behind_its_part_is_missed_while_others_are_waited_for,
    a_connection_on_which_the_other_host_answers_nothing_ends,
    an_abort_ends_a_rank_that_nobody_reads_from,
    a_reset_in_an_operation_breaks_the_group,
    a_frame_that_ends_in_the_middle_breaks_the_group,
    a_broken_group_stays_broken,
)


@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
def test_group_over_tcp(case):
    run_in_child(__name__, case)


if __name__ == "__main__":
    run_cases({case.__name__: case for case in CASES})
