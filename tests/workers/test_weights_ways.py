"""By which address models are fetched: the fastest, measured once, and another one when it falls silent."""

import pytest

from protocol.interfaces.names import LinkNames
from protocol.transport.addressing import this_host
from protocol.transport.echo import Measured
from protocol.values import Address, Peer
from workers.link_choice import LinkChoice
from workers.model.weights_fetch import Silent
from workers.weights_ways import WeightsWays

SPEEDS = {"tcp://10.1.0.2:7": 1e9, "tcp://10.2.0.2:7": 1e10, "tcp://10.3.0.2:7": None}


def ways(speeds=SPEEDS, **names):
    """And the endpoints that were measured."""
    measured = []

    def measure(endpoint, public_key, *, with_load):
        measured.append(endpoint)
        speed = speeds[endpoint]
        return None if speed is None else Measured(round_trip_s=1e-4, bytes_per_s=speed)

    return WeightsWays(LinkChoice({}, {}, lambda: 100.0, LinkNames(**names)), measure), measured


def source(host):
    addresses = tuple(Address(endpoint=endpoint.replace(":7", ":5"), interface="en0") for endpoint in SPEEDS)
    return Peer(endpoint="tcp://127.0.0.1:5", public_key="k", host=host, addresses=addresses, answer_port=7)


def test_fastest_address_is_taken_at_the_port_of_answers_and_measured_once():
    subject, measured = ways()
    assert subject.endpoint(source("elsewhere")) == "tcp://10.2.0.2:7"
    assert subject.endpoint(source("elsewhere")) == "tcp://10.2.0.2:7"
    assert sorted(measured) == sorted(SPEEDS)


def test_next_best_is_taken_when_it_falls_silent():
    subject, _ = ways()
    subject.endpoint(source("elsewhere"))
    subject.lost(source("elsewhere"))
    assert subject.endpoint(source("elsewhere")) == "tcp://10.1.0.2:7"


def test_same_host_is_asked_over_loopback_and_not_measured():
    subject, measured = ways()
    assert subject.endpoint(source(this_host())) == "tcp://127.0.0.1:7"
    assert measured == []


def test_who_answers_nobody_yet_is_measured_again_and_no_address_is_at_fault():
    speeds = dict.fromkeys(SPEEDS)
    subject, measured = ways(speeds)
    subject.endpoint(source("elsewhere"))
    speeds.update(SPEEDS)
    assert subject.endpoint(source("elsewhere")) == "tcp://10.2.0.2:7"
    assert len(measured) == 2 * len(SPEEDS)


def test_what_is_excluded_is_neither_measured_nor_asked():
    subject, measured = ways(exclude=("10.2.0.0/16",))
    assert subject.endpoint(source("elsewhere")) == "tcp://10.1.0.2:7"
    assert "tcp://10.2.0.2:7" not in measured
    subject, measured = ways(exclude=("10.0.0.0/8",))
    with pytest.raises(Silent, match=r"links\.exclude"):
        subject.endpoint(source("elsewhere"))
    assert measured == []
