"""Faults do to a process what their names say, and nothing of them stays behind."""

import os
import socket
import subprocess
import sys

import psutil
import pytest

from benchmarks.support.faults import KINDS, check_kinds, possible_kinds, prepared
from protocol.errors import UsageError
from tests.support.running_cluster import wait_until

# A process that computes on its first thread and beats on another, over a connection that it opens.
BEATING = """
import socket, sys, threading, time
link = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
progress = 0
def beat():
    while True:
        link.sendall(b"%d\\n" % progress)
        time.sleep(0.01)
threading.Thread(target=beat, daemon=True).start()
while True:
    progress += 1
    time.sleep(0.05)  # nearly always without the interpreter's lock, which a thread that is held still would keep
"""


@pytest.fixture
def beating():
    """A process of BEATING and the other end of its connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        command = [sys.executable, "-c", BEATING, str(listening.getsockname()[1])]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            link, _ = listening.accept()
            with link, link.makefile() as beats:
                beats.readline()
                yield process, beats
        finally:
            process.kill()
            process.wait()


def strike(kind, pid):
    if kind not in possible_kinds():
        pytest.skip("this system has no such call")
    return prepared(kind, pid)


def test_killed_process_is_gone(beating):
    process, _ = beating
    with strike("killed", process.pid) as fault:
        fault.strike()
        assert process.wait(5) == -9


def test_stopped_process_stands_still_with_its_connection_open_and_is_ended_afterwards(beating):
    process, _ = beating
    with strike("stopped", process.pid) as fault:
        fault.strike()
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, "it stops")
    assert process.wait(5) == -9


def test_closed_process_loses_its_connection_and_lives(beating):
    process, beats = beating
    with strike("closed", process.pid) as fault:
        fault.strike()
        beats.read()  # to the end of the connection
        assert process.poll() is None


def test_blocked_process_beats_and_computes_nothing(beating):
    process, beats = beating
    with strike("blocked", process.pid) as fault:
        fault.strike()
        last = [int(beats.readline()) for _ in range(50)][-1]  # the first of them were sent before
        assert [int(beats.readline()) for _ in range(20)] == [last] * 20
    assert process.wait(5) == -9


def test_process_that_is_blocked_and_then_killed_ends_for_its_parent_too(beating):
    process, _ = beating
    with strike("blocked", process.pid) as fault:
        fault.strike()
        os.kill(process.pid, 9)
        assert process.wait(5) == -9


def test_connections_of_a_fault_that_was_never_struck_stay(beating):
    process, beats = beating
    with strike("closed", process.pid):
        pass
    assert process.poll() is None
    assert beats.readline()


def test_kinds_that_do_not_exist_are_refused():
    check_kinds(possible_kinds())
    assert set(possible_kinds()) <= set(KINDS)
    with pytest.raises(UsageError, match="melted"):
        check_kinds(("melted",))
