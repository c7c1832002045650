"""Whether somebody answers, and that only silence counts, several times in a row."""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from cluster.pulse import MOST_MISSES, Pulse, answers

LIMIT_S = 20.0


@pytest.fixture
def listener():
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(LIMIT_S)
        yield server


def api_of(server):
    return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("said", [b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", b"nonsense\r\n\r\n", b""])
def test_whoever_says_anything_or_hangs_up_lives(listener, said):
    def serve():
        connection = listener.accept()[0]
        connection.recv(1024)
        connection.sendall(said)
        connection.close()

    threading.Thread(target=serve, daemon=True).start()
    assert answers(api_of(listener), within_s=LIMIT_S)


def test_whoever_takes_the_connection_and_says_nothing_does_not(listener):
    assert not answers(api_of(listener), within_s=0.2)


def test_nobody_there_is_not_silence(listener):
    api = api_of(listener)
    listener.close()
    assert answers(api, within_s=0.2)


def test_stopped_process_is_silent():
    served = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        port = int(served.stdout.readline().split()[5])
        api = f"http://127.0.0.1:{port}"
        assert answers(api, within_s=LIMIT_S)
        os.kill(served.pid, signal.SIGSTOP)
        assert not answers(api, within_s=0.2)
    finally:
        served.kill()
        served.wait()


def asked(*heard):
    """What a pulse with these answers does: how often it asks, and whether it says that all is silent."""
    given, done = iter(heard), queue.Queue()
    counts, has_name = [], threading.Event()

    def ask():
        has_name.wait(LIMIT_S)
        counts.append(1)
        heard = next(given, None)
        if heard is None:
            pulse.end()
            done.put("asked enough")
            return True
        return heard

    pulse = Pulse(ask, lambda: done.put("silent"), every_s=0.001)
    has_name.set()
    return done.get(timeout=LIMIT_S), len(counts)


def test_silence_counts_only_in_a_row():
    some = [False] * (MOST_MISSES - 1)
    assert asked(*some, True, *some, True) == ("asked enough", 2 * MOST_MISSES + 1)
    assert asked(True, *some, False, True, True) == ("silent", MOST_MISSES + 1)


def test_nothing_is_said_after_its_end():
    said = []
    begun, goes_on = threading.Event(), threading.Event()

    def ask():
        begun.set()
        goes_on.wait(LIMIT_S)
        return False

    pulse = Pulse(ask, lambda: said.append(1), every_s=0.001)
    assert begun.wait(LIMIT_S)
    pulse.end()
    goes_on.set()
    for thread in threading.enumerate():
        if thread.name == "pulse":
            thread.join(LIMIT_S)
    assert said == []
