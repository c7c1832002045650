"""What macOS prints: read right where it is whole, and "not known" where it is anything else."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.interfaces import macos
from protocol.interfaces.reading import read_mac
from protocol.interfaces.values import MacFacts, NetworkDevice, Rdma, RdmaDevice
from tests.protocol.interfaces.recorded import ALL, FILES, FOLDERS, Commands, mutated, text_of

GBIT = 1_000_000_000


def parsed(text: str) -> list[object]:
    """A text as each command's output."""
    return [
        macos.parse_hardware_ports(text),
        macos.parse_ifconfig(text),
        macos.parse_thunderbolt_json(text),
        macos.parse_thunderbolt_text(text),
        macos.parse_rdma(text, text, text),
    ]


def ports(folder: str):
    return {port.receptacle: port for port in read_mac(Commands(folder)).ports}


def test_hardware_ports_have_their_kinds():
    found = {port.name: (port.device, port.kind) for port in read_mac(Commands("studio_26")).hardware}
    assert found == {
        "Ethernet": ("en0", "ethernet"),
        "Thunderbolt Ethernet Slot 0": ("en10", "ethernet"),
        "Thunderbolt Bridge": ("bridge0", "thunderbolt"),
        "Wi-Fi": ("en1", "wifi"),
        **{f"Thunderbolt {number}": (f"en{number + 1}", "thunderbolt") for number in range(1, 5)},
    }


def test_telephone_is_no_ethernet_and_the_list_of_vlans_is_no_port():
    hardware = read_mac(Commands("laptop_27")).hardware
    assert {port.device: port.kind for port in hardware if port.kind in ("other", "ethernet")} == {
        "en9": "other",
        "en3": "ethernet",
    }
    assert len(hardware) == 7


def test_free_port_says_what_it_can_and_a_connected_one_what_it_does():
    free, connected = ports("studio_26")[1], ports("studio_26")[2]
    assert (free.connected, free.link_bits_per_s, free.most_bits_per_s) == (False, None, 120 * GBIT)
    assert (connected.connected, connected.link_bits_per_s, connected.most_bits_per_s) == (True, 80 * GBIT, None)


def test_promise_of_a_free_port_is_read_in_any_language():
    text = text_of("mini_27", "thunderbolt.json").replace("Up to 40", "Bis zu 40")
    assert macos.parse_thunderbolt_json(text)[1].most_bits_per_s == 40 * GBIT


def test_thunderbolt_4_shows_in_the_ports_of_a_mac():
    assert read_mac(Commands("mini_27")).most_bits_per_s == 40 * GBIT
    assert read_mac(Commands("studio_26")).most_bits_per_s == 120 * GBIT


def test_two_cables_between_one_pair_are_told_apart_by_the_far_ends_domains():
    studio, laptop = ports("studio_26"), ports("laptop_27")
    for near, far in ((2, 1), (3, 2)):
        assert studio[near].attached[0].domain == laptop[far].domain
        assert laptop[far].attached[0].domain == studio[near].domain


def test_dock_and_disk_are_no_hosts():
    (dock,), (disk,) = ports("studio_26")[4].attached, ports("mini_27")[3].attached
    assert (dock.name, dock.is_host, disk.name, disk.is_host) == ("Quay Dock 5", False, "Skiff", False)


def test_mac_behind_a_dock_is_found():
    profile = json.loads(text_of("studio_26", "thunderbolt.json"))
    dock, other = (profile["SPThunderboltDataType"][place]["_items"][0] for place in (0, 1))
    dock["_items"] = [other]
    assert [each.name for each in macos.parse_thunderbolt_json(json.dumps(profile))[3].attached] == [
        "Quay Dock 5",
        "MacBook Pro",
    ]


def test_peer_offers_rdma_where_it_is_on_whatever_macos_calls_the_service():
    assert [port.attached[0].offers_rdma for port in ports("laptop_27").values()] == [True, True, False]
    assert [port.attached[0].offers_rdma for port in (ports("studio_26")[2], ports("mini_27")[1])] == [False, False]


@pytest.mark.parametrize("folder", FOLDERS)
def test_text_for_people_says_the_same_as_json(folder):
    assert read_mac(Commands(folder, without=["thunderbolt.json"])).ports == read_mac(Commands(folder)).ports


def test_bridge_has_its_members_and_devices_their_addresses():
    devices = {device.name: device for device in read_mac(Commands("mini_27")).devices}
    assert devices["bridge0"] == NetworkDevice(
        name="bridge0",
        active=True,
        addresses=("fe80::c1c:2%bridge0", "10.44.2.3"),
        members=("en2", "en3", "en4"),
    )
    assert (devices["en2"].addresses, devices["en3"].active) == (("10.44.3.3",), False)
    assert read_mac(Commands("laptop_27")).bridges == ()


def test_rdma_is_on_with_devices_off_without_or_on_without_any():
    studio = read_mac(Commands("studio_26")).rdma
    assert studio.enabled
    assert studio.devices[:2] == (
        RdmaDevice(name="rdma_en2", interface="en2", active=False),
        RdmaDevice(name="rdma_en3", interface="en3", active=True),
    )
    assert read_mac(Commands("laptop_27")).rdma == Rdma(enabled=False)
    assert read_mac(Commands("mini_27")).rdma == Rdma(enabled=True)


def test_rdma_states_are_read_without_their_indentation():
    rdma = macos.parse_rdma(
        "", "rdma_en4  0123456789abcdef", "hca_id: rdma_en4\n...\nport: 1\nstate: PORT_ACTIVE (4)\n"
    )
    assert rdma == Rdma(enabled=True, devices=(RdmaDevice(name="rdma_en4", interface="en4", active=True),))


def test_mac_without_the_commands_is_not_known():
    assert read_mac(Commands("studio_26", without=[*FILES.values()])) == MacFacts()


def test_surroundings_know_bridges_speeds_and_what_leads_nowhere():
    known = macos.surroundings(read_mac(Commands("studio_26")))
    assert known.kinds["bridge0"] == "thunderbolt"
    assert known.members["bridge0"] == ("en2", "en3", "en5")
    assert known.bits_per_s == {"en3": 80 * GBIT, "en4": 40 * GBIT, "en5": 80 * GBIT}
    assert known.unusable == {"en1", "en2", "en5", "bridge100"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0\ufffd\ufffd",
        "null",
        "[]",
        "[" * 100_000,
        '{"SPThunderboltDataType": {}}',
        '{"SPThunderboltDataType": [[], 1, null, "x", {"_items": {}}]}',
        '{"SPThunderboltDataType": [' + '{"_items": [' * 5000,
        "\n".join(" " * depth + "Heading:" for depth in range(3000)),
        "zsh: command not found: networksetup",
        "\ud800",
    ],
)
def test_garbage_is_not_known(text):
    assert all(found in ((), Rdma()) for found in parsed(text))


def test_wrong_types_are_not_known_and_the_rest_is():
    bus = {
        "_items": [
            {"_name": 7, "domain_uuid_key": [], "services_title": "x"},
            {"services_title": [{"protocol_id_key": {}}]},
        ],
        "domain_uuid_key": 5,
        "receptacle_1_tag": {"receptacle_id_key": "\u0661", "current_speed_key": [], "receptacle_status_key": 1},
        "receptacle_2_tag": {"receptacle_id_key": "2", "receptacle_status_key": "receptacle_connected"},
        "receptacle_3_tag": "x",
    }
    first, second = macos.parse_thunderbolt_json(json.dumps({"SPThunderboltDataType": [bus]}))
    assert (first.receptacle, first.domain, first.connected, first.attached) == (None, None, None, ())
    assert (second.receptacle, second.link_bits_per_s, len(second.attached)) == (2, None, 2)


@settings(deadline=None)
@given(st.sampled_from(ALL), st.data())
def test_mutated_output_never_raises(recorded, data):
    parsed(mutated(text_of(*recorded), data.draw))


@settings(deadline=None)
@given(st.sampled_from([recorded for recorded in ALL if recorded[1] == "thunderbolt.json"]), st.data())
def test_json_with_other_values_never_raises(recorded, data):
    """Any value of the tree is replaced by any other JSON value, whatever it held."""
    profile = json.loads(text_of(*recorded))
    places = [
        (holder, key)
        for holder in nested(profile)
        for key in (holder if isinstance(holder, dict) else range(len(holder)))
    ]
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=4,
    )
    for holder, key in data.draw(st.lists(st.sampled_from(places), min_size=1, max_size=5)):
        holder[key] = data.draw(values)
    macos.surroundings(MacFacts(ports=macos.parse_thunderbolt_json(json.dumps(profile))))


def nested(value):
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from nested(inner)


@settings(deadline=None)
@given(st.sampled_from(ALL), st.integers(min_value=0))
def test_output_that_is_cut_off_tells_no_more_than_all_of_it(recorded, length):
    text = text_of(*recorded)
    whole, part = parsed(text), parsed(text[: length % (len(text) + 1)])
    for all_found, found in zip(whole[:4], part[:4], strict=True):
        assert len(found) <= len(all_found)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_binary_never_raises(data):
    parsed(data.decode("utf-8", "replace"))
    parsed(data.decode("latin-1"))
