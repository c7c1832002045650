"""What of theirs can be tried from where: by kind, with scopes of mine, and nothing that would find myself."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.interfaces.reach import owner_of, paths
from protocol.interfaces.values import Interface, LinkKind
from tests.protocol.interfaces.recorded import host


def on(name: str, kind: str, *addresses: str) -> Interface:
    return Interface(name=name, kind=LinkKind(kind), addresses=addresses)


def tried(mine, theirs) -> list[tuple[str, str, str]]:
    return [(path.interface, path.address, path.kind.value) for path in paths(tuple(mine), tuple(theirs))]


def test_kinds_break_ties_from_fast_to_slow():
    mine = [on("w0", "wifi", "10.1.0.1"), on("t0", "thunderbolt", "10.2.0.1"), on("e0", "ethernet", "10.3.0.1")]
    theirs = [on("w1", "wifi", "10.1.0.2"), on("e1", "ethernet", "10.3.0.2"), on("t1", "thunderbolt", "10.2.0.2")]
    assert tried(mine, theirs) == [
        ("t0", "10.2.0.2", "thunderbolt"),
        ("e0", "10.3.0.2", "ethernet"),
        ("w0", "10.1.0.2", "wifi"),
        ("e0", "10.1.0.2", "wifi"),
        ("w0", "10.3.0.2", "wifi"),
    ]


def test_link_local_address_carries_my_interface_as_scope():
    mine = [on("en1", "thunderbolt", "fe80::1%en1"), on("en2", "thunderbolt", "fe80::2%en2")]
    assert tried(mine, [on("en9", "thunderbolt", "fe80::9%en9")]) == [
        ("en1", "fe80::9%en1", "thunderbolt"),
        ("en2", "fe80::9%en2", "thunderbolt"),
    ]


def test_interface_without_an_address_of_that_sort_is_no_way_there():
    theirs = [on("en9", "ethernet", "10.0.0.9", "fd00::9", "fe80::9%en9")]
    assert tried([on("en1", "ethernet", "10.0.0.1")], theirs) == [("en1", "10.0.0.9", "ethernet")]
    assert tried([on("en1", "ethernet", "fe80::1%en1")], theirs) == [("en1", "fe80::9%en1", "ethernet")]
    assert tried([on("en1", "ethernet", "169.254.0.1")], theirs) == []


def test_ipv4_link_local_is_tried_where_one_interface_of_mine_has_it():
    theirs = [on("en9", "thunderbolt", "169.254.7.9"), on("en8", "thunderbolt", "169.254.8.9")]
    one = on("en1", "thunderbolt", "169.254.3.1")
    two = on("en2", "thunderbolt", "169.254.4.1", "10.0.0.1")
    assert [path[:2] for path in tried([one], theirs)] == [("en1", "169.254.7.9"), ("en1", "169.254.8.9")]
    assert tried([one, two], theirs) == []


def test_address_that_is_also_mine_is_left_out():
    docker = on("eth1", "other", "172.17.0.1")
    assert tried([docker, on("e0", "ethernet", "10.0.0.1")], [docker]) == []


def test_thunderbolt_ends_at_thunderbolt_or_at_what_nobody_knows():
    mine = [on("t0", "thunderbolt", "10.0.0.1")]
    theirs = [on("w", "wifi", "10.0.0.2"), on("e", "ethernet", "10.0.0.3"), on("o", "other", "10.0.0.4")]
    assert tried(mine, theirs) == [("t0", "10.0.0.4", "other")]


def test_what_strangers_call_addresses_is_passed_over():
    theirs = [on("x", "ethernet", "", "fe80::1%", "10.0.0", "127.0.0.1", "::", "224.0.0.1", "10.0.0.2", "10.0.0.2")]
    assert tried([on("e", "ethernet", "10.0.0.1", "::1")], theirs) == [("e", "10.0.0.2", "ethernet")]


def test_recorded_hosts_reach_each_other_by_cable_first():
    found = paths(host("laptop_27").interfaces, host("studio_26").interfaces)
    assert ("en1", "fe80::c1a:2%en1", "thunderbolt") in [(path.interface, path.address, path.kind) for path in found]
    assert {path.kind for path in found[:3]} == {"thunderbolt"}


def test_address_is_found_again_under_any_scope():
    mine = (on("en1", "thunderbolt", "10.0.0.1", "fe80::1%en1"), on("en2", "wifi", "10.0.0.2"))
    assert [owner_of(each, mine) for each in ("fe80::1%tb7", "10.0.0.2", "10.0.0.3", "odd")] == [*mine, None, None]


ADDRESSES = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(["169.254.1.1", "169.254.2.2", "fe80::1%en0", "fe80::2%zz", "fe80::3", "10.0.0.1"]),
    st.text(max_size=8),
)
INTERFACES = st.lists(
    st.builds(
        Interface,
        name=st.sampled_from(["en0", "en1", "tb0"]),
        kind=st.sampled_from(LinkKind),
        addresses=st.lists(ADDRESSES, max_size=4).map(tuple),
    ),
    max_size=3,
    unique_by=lambda interface: interface.name,
).map(tuple)


@settings(deadline=None)
@given(INTERFACES, INTERFACES)
def test_every_path_starts_at_an_interface_of_mine_and_none_comes_twice(mine, theirs):
    found = paths(mine, theirs)
    assert len(set(found)) == len(found)
    for path in found:
        address = ipaddress.ip_address(path.address)
        assert path.interface in {interface.name for interface in mine}
        assert address.version == 4 or not address.is_link_local or address.scope_id == path.interface
    assert [path.kind for path in found] == sorted((path.kind for path in found), key=[*LinkKind].index)


@pytest.mark.parametrize(("mine", "theirs"), [((), ()), ((on("e", "wifi"),), (on("e", "wifi"),))])
def test_nothing_leads_nowhere(mine, theirs):
    assert paths(mine, theirs) == ()
