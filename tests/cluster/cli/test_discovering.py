"""Which of the doors that are announced `--join auto` takes, and what it says when none will do."""

import ipaddress

import msgspec
import pytest

from cluster.cli import discovering
from cluster.cli.discovering import choose, find_cluster
from cluster.membership.discovery import DiscoveryFailed, own_door
from protocol.errors import TandemError

KEY, OTHER = "k" * 40, "o" * 40
NETWORKS = {ipaddress.ip_interface("10.0.0.2/24"): "en0"}


def announced(key=KEY, addresses=("10.0.0.1",), host="mini", incarnation=1):
    return own_door(host, incarnation, key, 4711, addresses)


def by(*endpoints):
    """Doors with the right key are there, and nowhere else."""
    return lambda endpoint, key: key == KEY and endpoint in endpoints


def test_door_with_the_fingerprint_of_the_token_is_taken_whatever_else_there_is():
    doors = [announced(OTHER, ["10.0.0.9"]), announced()]
    assert choose(KEY, doors, lambda *_: True, NETWORKS) == "tcp://10.0.0.1:4711"


def test_address_in_a_network_of_this_machine_is_tried_first_and_the_others_after_it():
    tried = []

    def proves(endpoint, key):
        tried.append(endpoint)
        return endpoint == "tcp://172.16.0.1:4711"

    door = announced(addresses=("192.168.7.1", "172.16.0.1", "10.0.0.1"))
    assert choose(KEY, [door], proves, NETWORKS) == "tcp://172.16.0.1:4711"
    assert tried == ["tcp://10.0.0.1:4711", "tcp://192.168.7.1:4711", "tcp://172.16.0.1:4711"]


def test_who_announces_the_fingerprint_and_has_not_the_key_is_passed_over():
    liar = announced(addresses=["10.0.0.66"], incarnation=9)
    assert choose(KEY, [liar, announced()], by("tcp://10.0.0.1:4711"), NETWORKS) == "tcp://10.0.0.1:4711"


def test_what_is_announced_later_is_not_waited_for():
    def doors():
        yield announced()
        raise AssertionError("it was found already")

    assert choose(KEY, doors(), by("tcp://10.0.0.1:4711"), NETWORKS) == "tcp://10.0.0.1:4711"


@pytest.mark.parametrize(
    ("doors", "said"),
    [
        ([], "no cluster was found in the networks of this machine; give the address"),
        ([announced(OTHER, host="studio")], r"other clusters were found \(studio\), not the one that is meant"),
        ([announced(OTHER, host=f"h{n}") for n in range(5)], r"\(h0, h1, h2 and 2 more\)"),
        ([announced()], r"the cluster on mini answers at none of its addresses \(10.0.0.1:4711\); give the address"),
        ([announced(addresses=())], "it names none"),
        ([msgspec.structs.replace(announced(), protocol=1)], "the cluster on mini has another version of Tandem"),
    ],
)
def test_when_none_will_do_it_says_what_was_found(doors, said):
    with pytest.raises(TandemError, match=said) as raised:
        choose(KEY, doors, by(), NETWORKS)
    assert raised.value.exit_code == 1


def test_network_that_cannot_be_asked_is_said(monkeypatch):
    def browse():
        raise DiscoveryFailed("port 5353 is taken")
        yield

    monkeypatch.setattr(discovering, "browse_by_mdns", browse)
    with pytest.raises(TandemError, match=r"cannot look for clusters \(port 5353 is taken\); give the address"):
        find_cluster(KEY)
