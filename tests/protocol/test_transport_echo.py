"""How fast another host is, asked of its answerer: figures that make sense from who answers, none from anybody else."""

from contextlib import closing

import pytest
import zmq

from protocol.transport import KeyPair
from protocol.transport.asking import ZmqAnswerer
from protocol.transport.echo import Measured, measure
from protocol.transport.securing import secure

KEYS, MINE = KeyPair.generate(), KeyPair.generate()
LIMIT_MS = 20_000


def _no_question(asked):
    raise AssertionError(asked)


@pytest.fixture
def echo():
    with closing(ZmqAnswerer(_no_question, keys=KEYS, admits=lambda key: key == MINE.public)) as echo:
        echo.start()
        yield echo


def endpoint_of(echo):
    return f"tcp://127.0.0.1:{echo.port}"


def test_echo_is_measured(echo):
    found = measure(endpoint_of(echo), KEYS.public, MINE)
    assert 0 < found.round_trip_s < 1
    assert 1e6 < found.bytes_per_s < 1e12


@pytest.mark.parametrize("frame", [b"", b"x", bytes(1 << 20)])
def test_echo_is_the_beginning_of_what_was_sent(echo, frame):
    with closing(zmq.Context.instance().socket(zmq.DEALER)) as socket:
        secure(socket, endpoint_of(echo), KEYS.public, MINE)
        socket.connect(endpoint_of(echo))
        for _ in range(20):
            socket.send(frame)
            assert socket.poll(LIMIT_MS)
            assert socket.recv_multipart() == [frame[:8]]
    assert measure(endpoint_of(echo), KEYS.public, MINE, with_load=False) is not None


def test_without_load_any_amount_is_assumed_to_go_through(echo):
    assert measure(endpoint_of(echo), KEYS.public, MINE, with_load=False).bytes_per_s == float("inf")


def test_somebody_elses_key_gets_no_answer(echo):
    other = KeyPair.generate()
    assert measure(endpoint_of(echo), other.public, MINE) is None
    assert measure(endpoint_of(echo), KEYS.public, other) is None


def test_nobody_there_is_none():
    with closing(ZmqAnswerer(_no_question, keys=KEYS, admits=lambda _: True)) as echo:
        endpoint = endpoint_of(echo)
    assert measure(endpoint, KEYS.public, MINE) is None
    assert measure("tcp://nowhere.invalid:1", KEYS.public, MINE) is None


def test_time_of_a_message_is_half_a_round_trip_and_its_bytes():
    assert Measured(round_trip_s=0.002, bytes_per_s=1e6).seconds(5000) == pytest.approx(0.006)
