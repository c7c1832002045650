"""A group of mx.distributed: what it is told, when it is used, and that nobody waits for ever. Ranks that exchange are processes."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import mlx.core as mx
import pytest

from protocol.values import Route
from tests.support.in_child import run_cases, run_in_child
from tests.workers.tensor.test_tcp_group import connected, on_ranks
from workers.engine import together
from workers.tensor import mlx_canary, mlx_group
from workers.tensor.group import Carrier, GroupBroken
from workers.tensor.mlx_files import (
    Ends,
    jaccl_environment,
    own_host,
    rdma_devices,
    ring_environment,
    ring_hosts,
)
from workers.tensor.mlx_group import Meeting, MlxGroup, MlxRanks, Shared, everyones
from workers.tensor.tcp_group import TcpGroup

ROUTE = Route(("a", "b"), ranks=2)
HERE = {0: Ends("10.0.0.2", "10.0.0.1"), 2: Ends("10.1.0.2", "10.1.0.3")}


def test_ring_of_hosts_with_several_addresses_is_told_as_each_rank_sees_it(tmp_path):
    assert own_host(1, HERE) == "10.0.0.2"
    hosts = ring_hosts(1, HERE, [7, 8, 9])
    assert hosts == [["10.0.0.1:7"], ["10.0.0.2:8"], ["10.1.0.3:9"]]
    environment = ring_environment(1, hosts, tmp_path)
    assert environment["MLX_RANK"] == "1"
    assert json.loads(Path(environment["MLX_HOSTFILE"]).read_text()) == hosts


def test_devices_of_jaccl_are_named_for_the_interfaces(tmp_path):
    rows = [rdma_devices(0, {1: "en5"}), rdma_devices(1, {0: None})]
    assert rows == [[None, "rdma_en5"], [None, None]]
    environment = jaccl_environment(1, rows, "fe80::1", 9, tmp_path)
    assert environment["MLX_JACCL_COORDINATOR"] == "[fe80::1]:9"
    assert json.loads(Path(environment["MLX_IBV_DEVICES"]).read_text()) == rows


class Calls(list):
    """Keeps what it is called with."""

    def __call__(self, why):
        self.append(why)


def group_of(control, ended):
    shared = Shared(about="ring of a+b", life="1", group=None)
    return MlxGroup(shared, control, ended, Carrier("ring"))


def an_operation_that_fails_ends_the_process():
    ended = Calls()

    def run(control):
        group = group_of(control, ended)
        with pytest.raises(ValueError, match="its own"), together.or_nobody({ROUTE: group}, ROUTE):
            raise ValueError("its own, and no operation's")
        with together.or_nobody({ROUTE: group}, ROUTE):
            raise RuntimeError("[ring] connection to a peer was lost")

    assert all(isinstance(each, GroupBroken) for each in on_ranks(connected(2), run))
    assert ended == ["the group over ring of a+b is broken: [ring] connection to a peer was lost"] * 2


def an_operation_that_does_not_end_ends_the_process_once_somebody_gave_up():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mlx_group, "_GRACE_S", 0.01)
        patched.setattr(mlx_group, "_LOOK_S", 0.01)
        for gives_up in (lambda group, _: group.abort(), lambda _, other: other.abort()):
            ends_once(gives_up)


def ends_once(gives_up):
    """One rank is in an operation that does not end by itself, the other in none."""
    begun, over = threading.Event(), threading.Event()

    def wait(x, group):
        begun.set()
        over.wait()
        return x

    first, other = connected(2)
    group = group_of(first, lambda _: over.set())
    threads = [
        threading.Thread(target=lambda: group._run(wait, mx.zeros(1))),
        threading.Thread(target=lambda: other.gather(mx.zeros(1))),
    ]
    for thread in threads:
        thread.start()
    begun.wait()
    threads[1].join()
    gives_up(group, other)
    threads[0].join()
    group.close()


def who_waits_for_a_rank_that_reads_is_freed_and_stays():
    ended = Calls()
    control, _ = connected(2)
    group = group_of(control, ended)
    control.waiting = group.abort
    with pytest.raises(GroupBroken):
        group.sum(mx.zeros(1))
    group.close()
    assert (ended, group._shared.num_operations) == ([], 0)


def meet_with(ranks, ended, transport="ring"):
    """What ranks make of it who have these groups and reasons."""

    def make(control):
        made = MlxRanks(ended)
        made._shared, made._why_not = ranks[control.rank]
        return made.group(
            Meeting(transport, ("a", "b"), {1 - control.rank: Ends("127.0.0.1", "127.0.0.1")}, control, int)
        )

    return on_ranks(connected(2), make)


def shared(about="ring of a+b", life="1", num_operations=4):
    return Shared(about=about, life=life, group=None, num_operations=num_operations)


def ranks_at_the_same_operation_go_on_with_their_group():
    found = meet_with([(shared(), None), (shared(), None)], ended := Calls())
    assert [type(each) for each in found] == [MlxGroup] * 2
    assert ended == []


def a_rank_whose_group_is_of_no_use_begins_anew_and_the_others_do_not():
    def end(why):
        ended.append(why)
        raise GroupBroken(why)

    for ranks, num_ended in (
        ([(shared(), None), (None, None)], 1),
        ([(shared(), None), (shared(num_operations=5), None)], 2),
        ([(shared(life="2"), None), (shared(), None)], 2),
    ):
        ended = []
        controls = connected(2)

        def make(control, ranks=ranks):
            made = MlxRanks(end)
            made._shared, made._why_not = ranks[control.rank]
            try:
                return made.group(Meeting("ring", ("a", "b"), {}, control, int))
            finally:
                control.close()

        assert all(isinstance(each, GroupBroken) for each in on_ranks(controls, make))
        assert ended == ["others of the group over ring of a+b began anew"] * num_ended


def what_was_tried_in_vain_is_not_tried_again():
    found = meet_with([(None, None), (None, "a try of ring failed: x")], Calls())
    assert [each.carrier for each in found] == [Carrier("tcp", "a try of ring failed: x")] * 2


def jaccl_is_refused_elsewhere():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mlx_group.platform, "system", lambda: "Linux")
        found = meet_with([(None, None)] * 2, Calls(), "jaccl")
    assert [each.carrier for each in found] == [Carrier("tcp", "jaccl is for Macs with RDMA over Thunderbolt")] * 2


def a_canary_that_is_silent_does_not_keep_anybody():
    times, waited = itertools.count(0.0, mlx_canary.TRY_WITHIN_S / 2), []
    # Not one that waits for input: asking it what it said closes that, and it ends.
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mlx_canary, "_LOOK_S", 0.01)
        found = mlx_canary._outcome(child, "ring", lambda: waited.append(1), lambda: next(times))
    assert (found, waited) == ("a try of ring did not end in 30 s", [1])
    child.kill()
    child.communicate()


def ranks_as_processes():
    """Two ranks that fork before anything of MLX runs: sums, gathers, another plan, and a rank that is gone."""
    ours, theirs = connected_sockets()
    pid = os.fork()
    if pid == 0:
        try:
            exchange_until_killed(1, theirs)
        finally:
            os._exit(1)
    group, ended = exchange_until_killed(0, ours)
    os.waitpid(pid, 0)
    total = group.sum(mx.ones(1))
    with pytest.raises(RuntimeError) as raised:
        begin_and_wait(total)
    assert ended == []
    with pytest.raises(GroupBroken):
        group.failed(raised.value)
    assert len(ended) == 1


def begin_and_wait(total):
    """As steps are computed; which of both raises is a matter of time."""
    mx.async_eval(total)
    memoryview(total)


def exchange_until_killed(rank, connection):
    """Rank 1 is."""
    ended = Calls()
    ranks = MlxRanks(ended)
    control = TcpGroup(rank, {1 - rank: connection}, ("a", "b"))
    meeting = Meeting("ring", ("a", "b"), {1 - rank: Ends("127.0.0.1", "127.0.0.1")}, control, int)
    group = ranks.group(meeting)
    assert group.carrier == Carrier("ring"), group.carrier
    for dtype in (mx.float32, mx.bfloat16, mx.int32):
        assert group.sum(mx.full((3, 5), rank + 1, dtype)).tolist() == [[3] * 5] * 3
    mine = mx.full((2, (3, 1)[rank]), rank)
    assert group.gather(mine, -1, (3, 1)).tolist() == [[0, 0, 0, 1]] * 2
    assert group.gather(mine).tolist() == [[0, 0, 0, 1]] * 2
    again = ranks.group(meeting)
    assert again.sum(mx.ones(1)).item() == 2
    assert everyones(control, again._shared.num_operations) == [5, 5]
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return again, ended


def connected_sockets():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        return one, listener.accept()[0]


CASES = (
    ranks_as_processes,  # which fork, and so come first
    an_operation_that_fails_ends_the_process,
    an_operation_that_does_not_end_ends_the_process_once_somebody_gave_up,
    who_waits_for_a_rank_that_reads_is_freed_and_stays,
    ranks_at_the_same_operation_go_on_with_their_group,
    a_rank_whose_group_is_of_no_use_begins_anew_and_the_others_do_not,
    what_was_tried_in_vain_is_not_tried_again,
    jaccl_is_refused_elsewhere,
    a_canary_that_is_silent_does_not_keep_anybody,
)


@pytest.mark.parametrize("case", [case.__name__ for case in CASES])
def test_mlx_group(case):
    run_in_child(__name__, case)


if __name__ == "__main__":
    run_cases({case.__name__: case for case in CASES})
