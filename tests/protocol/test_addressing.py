"""Where a host is reached from others, and which of another's addresses is sent to."""

import ipaddress
import socket
from types import SimpleNamespace

import pytest

from protocol.interfaces.names import LinkNames
from protocol.transport import addressing
from protocol.transport.addressing import (
    advertised,
    endpoint_for,
    endpoint_of,
    nearest,
    own_networks,
    permitted_here,
    permitted_there,
    this_host,
)
from protocol.values import Address, Peer


def address(ip, interface="en0"):
    return Address(endpoint=endpoint_of(ip, 5000), interface=interface)


def networks(*texts):
    return {ipaddress.ip_interface(text): f"if{number}" for number, text in enumerate(texts)}


@pytest.mark.parametrize(
    ("theirs", "mine", "chosen"),
    [
        (["10.0.1.2", "10.0.2.2"], ["10.0.2.1/24"], "10.0.2.2"),
        (["10.0.1.2", "10.0.2.2"], ["10.0.2.1/24", "10.0.1.1/24"], "10.0.1.2"),
        (["10.0.1.2", "10.0.2.2"], ["192.168.0.1/16"], "10.0.1.2"),
        (["fd00::2", "10.0.1.2"], ["10.0.1.1/24"], "10.0.1.2"),
        (["10.0.1.2", "fd00::2"], ["fd00::1/64"], "fd00::2"),
        (["mac.local", "10.0.1.2"], ["10.0.1.1/24"], "10.0.1.2"),
    ],
)
def test_another_host_is_reached_where_both_are(theirs, mine, chosen):
    assert nearest([address(ip) for ip in theirs], networks(*mine)) == endpoint_of(chosen, 5000)


def test_processes_of_one_host_use_loopback_and_others_do_not(monkeypatch):
    monkeypatch.setattr(addressing, "own_networks", lambda: networks("10.0.1.1/24"))
    there = (address("10.0.1.2"),)
    for host, expected in ((this_host(), "tcp://127.0.0.1:5000"), ("elsewhere", "tcp://10.0.1.2:5000")):
        peer = Peer(endpoint="tcp://127.0.0.1:5000", public_key="k" * 40, host=host, addresses=there)
        assert endpoint_for(peer) == expected


def test_peer_without_addresses_is_reached_where_it_says():
    assert endpoint_for(Peer(endpoint="tcp://10.9.9.9:1", public_key="k" * 40)) == "tcp://10.9.9.9:1"


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        (["*"], ["10.0.1.1", "192.168.1.5"]),
        (["192.168.1.5"], ["192.168.1.5"]),
        (["fd00::1"], ["fd00::1"]),
        (["127.0.0.1"], []),
    ],
)
def test_only_what_is_listened_at_is_said(listen, expected):
    found = advertised(listen, 5000, networks("10.0.1.1/24", "192.168.1.5/16", "fd00::1/64"))
    assert [each.endpoint for each in found] == [endpoint_of(ip, 5000) for ip in expected]


@pytest.mark.parametrize(
    ("listen", "exclude", "expected"),
    [
        (["*"], [], ["*"]),
        (["*"], ["if0"], ["192.168.1.5"]),
        (["*"], ["192.168.0.0/16"], ["10.0.1.1"]),
        (["*"], ["if0", "192.168.1.5"], []),
        (["*"], ["if9"], ["10.0.1.1", "192.168.1.5"]),
        (["10.0.1.1", "fd00::1"], ["10.0.1.1"], ["fd00::1"]),
        (["127.0.0.1"], ["if0"], ["127.0.0.1"]),
    ],
)
def test_excluded_addresses_of_this_host_are_not_listened_at(listen, exclude, expected):
    own = networks("10.0.1.1/24", "192.168.1.5/16", "fd00::1/64")
    assert permitted_here(listen, LinkNames(exclude=tuple(exclude)), own) == tuple(expected)


@pytest.mark.parametrize(
    ("exclude", "expected"),
    [
        ([], ["10.0.1.2", "10.0.2.2", "172.16.0.2"]),
        (["if0"], ["10.0.2.2", "172.16.0.2"]),
        (["10.0.2.0/24"], ["10.0.1.2", "172.16.0.2"]),
        (["10.0.2.1"], ["10.0.1.2", "10.0.2.2", "172.16.0.2"]),  # another one of ours leads there too
        (["if1", "if2"], ["10.0.1.2", "172.16.0.2"]),
        (["172.16.0.2"], ["10.0.1.2", "10.0.2.2"]),
    ],
)
def test_excluded_addresses_of_another_host_are_those_named_or_reached_by_excluded_ones_alone(exclude, expected):
    theirs = [address(ip) for ip in ("10.0.1.2", "10.0.2.2", "172.16.0.2")]
    own = networks("10.0.1.1/24", "10.0.2.1/24", "10.0.2.5/24")
    found = permitted_there(theirs, LinkNames(exclude=tuple(exclude)), own)
    assert [each.endpoint for each in found] == [endpoint_of(ip, 5000) for ip in expected]


def test_loopback_tunnels_and_what_is_down_are_no_links(monkeypatch):
    four = [SimpleNamespace(family=socket.AF_INET, address="10.0.0.1", netmask="255.255.255.0")]
    six = [
        SimpleNamespace(family=socket.AF_INET6, address="fe80::1%en1", netmask="ffff:ffff:ffff:ffff::"),
        SimpleNamespace(family=socket.AF_INET6, address="fd00::1", netmask="ffff:ffff:ffff:ffff::"),
        SimpleNamespace(family=-1, address="aa:bb", netmask=None),
    ]
    loopback = [SimpleNamespace(family=socket.AF_INET, address="127.0.0.1", netmask="255.0.0.0")]
    found = {"en0": four, "en1": six, "lo0": loopback, "utun3": four, "awdl0": four, "en9": four}
    monkeypatch.setattr(addressing.psutil, "net_if_addrs", lambda: found)
    up = {name: SimpleNamespace(isup=name != "en9") for name in found}
    monkeypatch.setattr(addressing.psutil, "net_if_stats", lambda: up)
    assert own_networks() == {
        ipaddress.ip_interface("10.0.0.1/24"): "en0",
        ipaddress.ip_interface("fd00::1/64"): "en1",
    }
