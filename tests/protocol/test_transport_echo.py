"""How fast another host is, asked of its answerer: figures that make sense from who answers, none from anybody else."""

from contextlib import closing

import pytest
import zmq

from protocol.transport import KeyPair, echo
from protocol.transport.asking import ZmqAnswerer
from protocol.transport.echo import Measured, measure
from protocol.transport.securing import secure

KEYS, MINE = KeyPair.generate(), KeyPair.generate()
LIMIT_MS = 20_000


def _no_question(asked):
    raise AssertionError(asked)


@pytest.fixture
def answerer():
    with closing(ZmqAnswerer(_no_question, keys=KEYS, admits=lambda key: key == MINE.public)) as answerer:
        answerer.start()
        yield answerer


def endpoint_of(answerer):
    return f"tcp://127.0.0.1:{answerer.port}"


def test_echo_is_measured(answerer):
    found = measure(endpoint_of(answerer), KEYS.public, MINE)
    assert 0 < found.round_trip_s < 1
    assert 1e6 < found.bytes_per_s < 1e12


@pytest.mark.parametrize("frame", [b"", b"x", bytes(1 << 20)])
def test_echo_is_the_beginning_of_what_was_sent(answerer, frame):
    with closing(zmq.Context.instance().socket(zmq.DEALER)) as socket:
        secure(socket, endpoint_of(answerer), KEYS.public, MINE)
        socket.connect(endpoint_of(answerer))
        for _ in range(20):
            socket.send(frame)
            assert socket.poll(LIMIT_MS)
            assert socket.recv_multipart() == [frame[:8]]
    assert measure(endpoint_of(answerer), KEYS.public, MINE, with_load=False) is not None


class SlowWay:
    """A socket over which so many bytes a second are echoed. It knows the time, which passes where an answer is awaited."""

    def __init__(self, bytes_per_s):
        self.seconds = self.num_bytes = 0
        self._bytes_per_s = bytes_per_s
        self._under_way = []

    def send(self, piece, copy):
        self.num_bytes += len(piece)
        begins = max(self.seconds, self._under_way[-1] if self._under_way else 0.0)
        self._under_way.append(begins + len(piece) / self._bytes_per_s)

    def poll(self, limit_ms):
        return self._under_way[0] - self.seconds < limit_ms / 1e3

    def recv(self):
        self.seconds = self._under_way.pop(0)


@pytest.mark.parametrize("bytes_per_s", [1e5, 1e6, 6e6, 1e8, 1e9, 1e10])
def test_slow_way_is_loaded_for_no_longer_than_a_fast_one(bytes_per_s):
    way = SlowWay(bytes_per_s)
    assert echo._bytes_per_s(way, lambda: way.seconds) == pytest.approx(bytes_per_s)
    assert way.num_bytes / bytes_per_s < max(0.3, 70_000 / bytes_per_s)


def test_way_that_answers_no_more_is_not_waited_for():
    with pytest.raises(zmq.Again):
        echo._bytes_per_s(SlowWay(1e3), lambda: 0.0)


def test_without_load_any_amount_is_assumed_to_go_through(answerer):
    assert measure(endpoint_of(answerer), KEYS.public, MINE, with_load=False).bytes_per_s == float("inf")


def test_somebody_elses_key_gets_no_answer(answerer):
    other = KeyPair.generate()
    assert measure(endpoint_of(answerer), other.public, MINE) is None
    assert measure(endpoint_of(answerer), KEYS.public, other) is None


def test_nobody_there_is_none():
    with closing(ZmqAnswerer(_no_question, keys=KEYS, admits=lambda _: True)) as answerer:
        endpoint = endpoint_of(answerer)
    assert measure(endpoint, KEYS.public, MINE) is None
    assert measure("tcp://nowhere.invalid:1", KEYS.public, MINE) is None


def test_time_of_a_message_is_half_a_round_trip_and_its_bytes():
    assert Measured(round_trip_s=0.002, bytes_per_s=1e6).seconds(5000) == pytest.approx(0.006)
