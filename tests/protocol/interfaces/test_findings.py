"""What is wrong or wasted between hosts, said once, and nothing about what is not known."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from protocol.errors import as_sentence
from protocol.interfaces.findings import UsedLink, findings
from protocol.interfaces.reach import Path
from protocol.interfaces.reading import read_mac
from protocol.interfaces.values import HostFacts, Interface, LinkKind, Rdma
from tests.protocol.interfaces.recorded import FILES, FOLDERS, Commands, host, mutated

STUDIO, LAPTOP, MINI = map(host, FOLDERS)


def about(word: str, *hosts: HostFacts, links=()) -> list[str]:
    return [clause for clause in findings(hosts, tuple(links)) if word in clause]


def link(near: str, far: str, interface: str, address: str, kind: str) -> UsedLink:
    return UsedLink(near=near, far=far, path=Path(interface=interface, address=address, kind=LinkKind(kind)))


def linux(name: str, **interface) -> HostFacts:
    return HostFacts(host=name, interfaces=(Interface(**{"name": "eth0", "kind": LinkKind.ETHERNET} | interface),))


def test_cable_to_a_mac_without_an_address_is_unused():
    assert about("carries nothing", STUDIO, LAPTOP, MINI) == [
        (
            "a cable joins Thunderbolt 3 of studio to MacBook Pro and carries nothing, because en4 has no address; give it one, "
            "or make it a member of the Thunderbolt Bridge, in System Settings > Network"
        ),
        (
            "a cable joins Thunderbolt 3 of laptop to Mac mini and carries nothing, because en2 has no address; give it one, "
            "or make it a member of the Thunderbolt Bridge, in System Settings > Network"
        ),
    ]


def test_cable_is_not_called_unused_where_nobody_knows_the_bridges():
    unknown = replace(STUDIO, mac=replace(STUDIO.mac, devices=()))
    assert about("carries nothing", unknown) == []


def test_wifi_beside_a_thunderbolt_cable_is_said_once_for_both_directions():
    links = [
        link("studio", "laptop", "en0", "192.168.70.22", "wifi"),
        link("laptop", "studio", "en0", "192.168.70.21", "wifi"),
    ]
    assert about("Wi-Fi", STUDIO, LAPTOP, links=links) == [
        (
            "traffic between laptop and studio goes over Wi-Fi although a Thunderbolt cable joins them; give both ends of the cable addresses of "
            "one network, in System Settings > Network"
        )
    ]


def test_wifi_beside_ethernet_at_both_ends_is_found():
    one, two = (
        HostFacts(
            host=name,
            interfaces=(
                Interface(name="wlan0", kind=LinkKind.WIFI, addresses=(f"10.1.0.{number}",)),
                Interface(name="eth0", kind=LinkKind.ETHERNET, addresses=(f"10.2.0.{number}",)),
            ),
        )
        for number, name in enumerate(["one", "two"], 1)
    )
    assert findings((one, two), (link("one", "two", "wlan0", "10.1.0.2", "wifi"),)) == (
        (
            "traffic between one and two goes over Wi-Fi although both have Ethernet; check that their Ethernet addresses are of "
            "one network and that the cable is in"
        ),
    )


def test_wifi_is_right_where_nothing_else_leads_there():
    far = linux("far", kind=LinkKind.WIFI, addresses=("10.0.0.2",))
    links = [link("laptop", "far", "en0", "10.0.0.2", "wifi")]
    assert findings((linux("laptop", kind=LinkKind.WIFI, addresses=("10.0.0.1",)), far), tuple(links)) == ()


def test_links_in_use_by_cable_say_nothing_of_wifi():
    assert about("Wi-Fi", STUDIO, LAPTOP, links=[link("laptop", "studio", "en1", "10.44.0.1", "thunderbolt")]) == []


def test_member_of_a_bridge_with_an_address_of_its_own_is_a_conflict():
    assert about("member of bridge0 and", STUDIO, LAPTOP, MINI) == [
        (
            "en2 of mini is a member of bridge0 and has an address of its own, 10.44.3.3, which the bridge can make unreachable; "
            "take en2 out of the bridge or remove its address, in System Settings > Network"
        )
    ]


def test_address_that_the_system_gives_by_itself_is_no_conflict():
    devices = tuple(
        replace(each, addresses=("fe80::1%en2",)) if each.name == "en2" else each for each in MINI.mac.devices
    )
    assert about("member of bridge0 and", replace(MINI, mac=replace(MINI.mac, devices=devices))) == []


def test_frames_that_differ_between_both_ends_are_found_by_the_cable():
    bridged = tuple(
        replace(each, members=(*each.members, "en4")) if each.members else each for each in STUDIO.mac.devices
    )
    studio = replace(STUDIO, mac=replace(STUDIO.mac, devices=bridged))
    assert about("frames of up to", studio, LAPTOP)[0] == (
        "en6 of laptop sends frames of up to 9000 bytes and bridge0 of studio of up to 1500; set the MTU of both to one "
        "value"
    )


def test_frames_that_differ_are_found_by_the_link_in_use():
    hosts = (linux("one", addresses=("fe80::1%eth0",), mtu=1500), linux("two", addresses=("fe80::2%eth0",), mtu=1400))
    links = [
        link("one", "two", "eth0", "fe80::2%eth0", "ethernet"),
        link("two", "one", "eth0", "fe80::1%eth0", "ethernet"),
    ]
    assert findings(hosts, tuple(links)) == (
        (
            "eth0 of one sends frames of up to 1500 bytes and eth0 of two of up to 1400; set the MTU of both to one "
            "value"
        ),
    )


def test_jumbo_frames_are_found_on_ethernet_alone():
    assert about("Ethernet frames", STUDIO, LAPTOP, MINI) == [
        (
            "en0 of studio sends Ethernet frames of up to 9000 bytes, which every switch and host on the way must take; set its "
            "MTU to 1500 unless all of them do"
        )
    ]


def test_slow_cable_between_two_fast_ports_is_found_and_thunderbolt_4_ports_are_not():
    assert about("runs at", STUDIO, LAPTOP, MINI) == [
        (
            "the cable from Thunderbolt 3 of studio to Thunderbolt 2 of laptop runs at 40 Gb/s and both ends can do 80 Gb/s; "
            "use a Thunderbolt 5 cable, without a dock in between"
        )
    ]


@pytest.mark.parametrize(("enabled", "found"), [(False, 1), (True, 0), (None, 0)])
def test_rdma_that_is_possible_and_off_is_found(enabled, found):
    laptop = replace(LAPTOP, mac=replace(LAPTOP.mac, rdma=Rdma(enabled=enabled)))
    assert len(about("rdma_ctl enable", laptop)) == found


def test_rdma_is_not_possible_over_thunderbolt_4():
    assert about("rdma", replace(MINI, mac=replace(MINI.mac, rdma=Rdma(enabled=False)))) == []


def test_links_of_hosts_that_nobody_knows_are_passed_over():
    assert findings((), (link("a", "b", "en0", "10.0.0.1", "wifi"),)) == ()
    odd = link("studio", "mini", "gone", "odd", "wifi")
    assert findings((STUDIO, MINI), (odd,))


def test_every_finding_is_a_clause_that_becomes_a_sentence():
    found = findings((STUDIO, LAPTOP, MINI))
    assert len(found) == len(set(found)) == 6
    for clause in found:
        assert not clause.endswith(".")
        assert as_sentence(clause).endswith(".")


@settings(deadline=None)
@given(st.sampled_from(FOLDERS), st.data())
def test_facts_of_a_mac_whose_commands_print_anything_give_findings_or_none(folder, data):
    changed = data.draw(st.sampled_from([*FILES]))
    commands = Commands(folder)

    def run(command):
        return mutated(commands(command), data.draw) if command == changed else commands(command)

    findings((replace(host(folder), mac=read_mac(run)), STUDIO, MINI))
