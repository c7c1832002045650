"""The relay that stands for a cable, with plain TCP at both ends."""

import socket
import time
from contextlib import closing

import pytest

from tests.support.relay import Relay

DEADLINE_S = 10.0


class Ends:
    """A client connected through a relay, and the server's end of that connection once something came."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(DEADLINE_S)
        self.relay = Relay(self.listener.getsockname()[1])
        self.client = self.connect()

    def connect(self):
        client = socket.create_connection(("127.0.0.1", self.relay.port), timeout=DEADLINE_S)
        client.sendall(b"hello")
        return client

    def accept(self):
        server, _ = self.listener.accept()
        server.settimeout(DEADLINE_S)
        assert server.recv(5) == b"hello"
        return server

    def close(self):
        self.relay.close()
        self.listener.close()
        self.client.close()


@pytest.fixture
def ends():
    with closing(Ends()) as ends:
        yield ends


def assert_nothing_comes(end):
    end.settimeout(0.2)
    with pytest.raises(TimeoutError):
        end.recv(1)
    end.settimeout(DEADLINE_S)


def test_bytes_go_both_ways_and_an_end_is_passed_on(ends):
    with ends.accept() as server:
        server.sendall(b"welcome")
        assert ends.client.recv(7) == b"welcome"
    assert ends.client.recv(1) == b""


def test_reset_breaks_both_sides(ends):
    with ends.accept() as server:
        ends.relay.reset()
        for end in (server, ends.client):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
    with ends.connect(), ends.accept():
        pass


def test_cut_holds_back_without_a_word_until_healed(ends):
    with ends.accept() as server:
        ends.relay.cut()
        ends.client.sendall(b"x")
        assert_nothing_comes(server)
        with ends.connect() as later:
            assert_nothing_comes(later)
            ends.relay.heal()
            assert server.recv(1) == b"x"
            ends.accept().close()


def test_delay_defers_and_does_not_slow_down(ends):
    with ends.accept() as server:
        ends.relay.delay(0.2)
        began = time.monotonic()
        for _ in range(20):
            ends.client.sendall(b"x")
        assert server.recv(1) == b"x"
        assert time.monotonic() - began >= 0.2
        left = 19
        while left:
            left -= len(server.recv(left))
        assert time.monotonic() - began < 2.0


def test_throttle_limits_the_rate(ends):
    with ends.accept() as server:
        ends.relay.throttle(1_000_000)
        began = time.monotonic()
        ends.client.sendall(bytes(400_000))
        left = 400_000
        while left:
            left -= len(server.recv(left))
        assert time.monotonic() - began >= 0.2


def test_closed_relay_is_gone_with_its_connections(ends):
    with ends.accept() as server:
        ends.relay.close()
        with pytest.raises(ConnectionResetError):
            server.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", ends.relay.port))
        ends.relay = Relay(1)
