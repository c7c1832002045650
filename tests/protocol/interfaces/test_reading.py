"""Which interfaces count, and that a system which says little, or nothing, raises nothing."""

import ipaddress
import subprocess
import sys

import psutil
import pytest

from protocol.interfaces.reading import choose, read_host, read_interfaces, read_mac, run_command
from protocol.interfaces.values import Interface, LinkKind, MacFacts, Surroundings
from tests.protocol.interfaces.recorded import Commands, entry, host, psutil_of, state

GBIT = 1_000_000_000


def chosen(*names, known=None, **further):
    addresses = {name: [entry("10.0.0.1")] for name in names}
    states = {name: state(**further) for name in names}
    return [interface.name for interface in choose(addresses, states, known or Surroundings())]


def test_macs_interfaces_are_what_leads_to_other_hosts():
    assert {each.name: (each.kind, each.addresses) for each in host("studio_26").interfaces} == {
        "en0": ("ethernet", ("192.168.70.21", "fe80::c1a:1%en0", "fd7a:1c::21")),
        "en10": ("ethernet", ("192.168.71.21",)),
        "bridge0": ("thunderbolt", ("fe80::c1a:2%bridge0", "10.44.0.1")),
    }
    assert [each.name for each in host("laptop_27").interfaces] == ["en0", "en1", "en6"]


def test_ports_have_the_speed_of_their_cables():
    laptop = {each.name: each for each in host("laptop_27").interfaces}
    assert laptop["en1"] == Interface(
        name="en1",
        kind=LinkKind.THUNDERBOLT,
        addresses=("fe80::c1b:2%en1", "10.44.0.2"),
        mtu=1500,
        bits_per_s=80 * GBIT,
    )
    assert (laptop["en6"].bits_per_s, laptop["en6"].mtu, laptop["en0"].bits_per_s) == (40 * GBIT, 9000, None)


def test_bridge_with_an_address_speaks_for_its_members():
    assert [each.name for each in host("mini_27").interfaces] == ["en0", "en1", "bridge0"]
    known = Surroundings(members={"bridge0": ("en2",)})
    assert chosen("bridge0", "en2", "en3", known=known) == ["bridge0", "en3"]
    assert chosen("en2", "en3", known=known) == ["en2", "en3"]


def test_bridge_that_is_down_speaks_for_nobody():
    addresses = {"bridge0": [entry("10.0.0.1")], "en2": [entry("10.0.0.2")]}
    states = {"bridge0": state(up=False), "en2": state()}
    known = Surroundings(members={"bridge0": ("en2",)})
    assert [each.name for each in choose(addresses, states, known)] == ["en2"]


@pytest.mark.parametrize(
    "name",
    [
        "lo",
        "lo0",
        "utun4",
        "tun0",
        "tap1",
        "wg0",
        "wg-home",
        "tailscale0",
        "docker0",
        "br-0a1b2c3d4e5f",
        "virbr0",
        "awdl0",
        "llw0",
        "anpi1",
        "ap1",
        "gif0",
        "stf0",
        "vmenet0",
        "ppp0",
    ],
)
def test_tunnels_containers_and_radio_between_apples_devices_are_left_out(name):
    assert chosen(name) == []


@pytest.mark.parametrize(
    "name", ["eth0", "tb0", "veth1a2b", "en0", "bridge0", "br0", "br-lan", "wlan0", "thunderbolt0"]
)
def test_interfaces_that_lead_elsewhere_stay(name):
    assert chosen(name) == [name]


@pytest.mark.parametrize("flags", ["up,pointopoint,running", "up,loopback"])
def test_one_far_end_or_none_is_no_network(flags):
    assert chosen("office", flags=flags) == []


def test_what_is_down_or_has_no_state_is_left_out():
    assert chosen("eth0", up=False) == []
    assert choose({"eth0": [entry("10.0.0.1")]}, {}, Surroundings()) == ()


def test_addresses_that_lead_nowhere_are_left_out_and_labels_joined():
    addresses = {
        "eth0": [
            entry("10.0.0.1"),
            entry("127.0.0.2"),
            entry("0.0.0.0"),
            entry("::1"),
            entry("no:address"),
            entry("fe80::1"),
        ],
        "eth0:1": [entry("10.0.0.2"), entry("10.0.0.1")],
    }
    (eth0,) = choose(addresses, {"eth0": state(speed=1000)}, Surroundings())
    assert eth0.addresses == ("10.0.0.1", "fe80::1%eth0", "10.0.0.2")
    assert eth0.bits_per_s == GBIT


@pytest.mark.parametrize("failure", [FileNotFoundError("x"), PermissionError("x"), subprocess.TimeoutExpired("x", 1)])
def test_commands_that_fail_leave_things_unknown(failure):
    def run(command):
        raise failure

    assert read_mac(run) == MacFacts()


def test_mac_is_read_by_commands_and_other_systems_are_not(monkeypatch, tmp_path):
    addresses, states = psutil_of("laptop_27")
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: states)
    assert read_host("laptop", Commands("laptop_27"), platform="darwin") == host("laptop_27")
    for platform in ("linux", "freebsd14"):
        others = read_interfaces(None, platform=platform, sys_class_net=tmp_path)
        assert {each.kind for each in others} == {"other"}
        assert "en1" in {each.name for each in others}


def test_interfaces_of_this_machine_have_addresses_that_can_be_read():
    for interface in read_interfaces():
        assert all(not ipaddress.ip_address(address).is_loopback for address in interface.addresses)


def test_output_of_a_command_is_read_whatever_its_status_and_bytes():
    program = "import sys; sys.stdout.buffer.write(b'a\\xff'); sys.exit(3)"
    assert run_command([sys.executable, "-c", program]) == "a\ufffd"
