"""What is measured when, with what load, and what is said of it."""

import pytest

from protocol.messages import LinkFigures
from protocol.transport.echo import Measured
from protocol.values import Address, Peer
from workers.link_choice import LinkChoice
from workers.link_prober import _LOAD_EVERY, _NUM_SOON, LinkProber

FAST, SLOW = "10.0.0.2", "10.9.0.2"
PEER = Peer(
    endpoint="tcp://127.0.0.1:5",
    public_key="k" * 40,
    host="b",
    addresses=tuple(Address(endpoint=f"tcp://{ip}:5", interface="x") for ip in (SLOW, FAST)),
    answer_port=6,
)


class Links:
    """Answers with figures, and remembers how it was asked."""

    def __init__(self):
        self.asked = []
        self.silent = set()

    def __call__(self, endpoint, public_key, *, with_load):
        assert public_key == PEER.public_key
        self.asked.append((endpoint, with_load))
        if any(ip in endpoint for ip in self.silent):
            return None
        return Measured(round_trip_s=1e-4 if FAST in endpoint else 1e-2, bytes_per_s=1e8 if with_load else float("inf"))


@pytest.fixture
def played():
    return Played()


class Played:
    def __init__(self):
        self.busy = False
        self.links = Links()
        self.told = []
        self.choice = LinkChoice({}, {"x": "ethernet"}, lambda: 0.0)
        self.prober = LinkProber(
            "a", self.choice, self.links, is_busy=lambda: self.busy, report=self.told.append
        )  # fmt: skip
        self.choice.renew({"b": PEER})

    def turn(self):
        self.links.asked.clear()
        self.prober.turn()
        return dict(self.links.asked)


def test_echo_of_every_address_is_asked_and_figures_are_told(played):
    assert played.turn() == {f"tcp://{SLOW}:6": True, f"tcp://{FAST}:6": True}
    (message,) = played.told
    assert message.worker == "a"
    assert [(each.to, each.address, each.in_use) for each in message.links] == [
        ("b", f"tcp://{SLOW}:5", False),
        ("b", f"tcp://{FAST}:5", True),
    ]
    assert all(isinstance(each, LinkFigures) and each.bytes_per_s == 10**8 for each in message.links)


def test_requests_are_not_disturbed_by_load(played):
    played.busy = True
    assert set(played.turn().values()) == {False}


def test_address_in_use_is_loaded_each_time_the_others_seldom(played):
    played.choice.choose(PEER)
    for _ in range(_NUM_SOON):
        played.turn()
    played.choice.renew({"b": PEER})
    for _ in range(_NUM_SOON):
        played.turn()
    assert played.choice.choose(PEER) == f"tcp://{FAST}:5"
    seen = [played.turn() for _ in range(_LOAD_EVERY)]
    assert all(turn[f"tcp://{FAST}:6"] for turn in seen)
    assert sum(turn[f"tcp://{SLOW}:6"] for turn in seen) == 1


def test_better_address_is_asked_for_when_nothing_runs(played):
    assert played.choice.choose(PEER) == f"tcp://{SLOW}:5"
    played.turn()
    assert played.told[-1].move == "idle"
    played.choice.renew({"b": PEER})
    assert played.choice.choose(PEER) == f"tcp://{FAST}:5"
    played.turn()
    assert played.told[-1].move == ""


def test_silent_address_is_at_fault_only_while_another_answers(played):
    played.turn()
    played.links.silent = {FAST, SLOW}
    played.turn()
    assert played.choice.choose(PEER) == f"tcp://{FAST}:5"
    played.links.silent = {FAST}
    played.turn()
    played.choice.renew({"b": PEER})
    assert played.choice.choose(PEER) == f"tcp://{SLOW}:5"


def test_cluster_on_one_host_measures_and_says_nothing(played):
    played.choice.renew({})
    assert played.turn() == {}
    assert played.told == []
