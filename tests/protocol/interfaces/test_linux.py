"""Kinds of interfaces from the files of Linux, below a folder of the test's."""

import pytest

from protocol.interfaces.linux import read_surroundings


@pytest.fixture
def net(tmp_path):
    return tmp_path / "net"


def add(net, name, *, driver=None, folders=(), **files):
    folder = net / name
    for inner in ("device", *folders):
        (folder / inner).mkdir(parents=True)
    if driver:
        (folder / "device" / "driver").symlink_to(f"../../../bus/drivers/{driver}")
    for file, text in files.items():
        (folder / file).write_text(text)


def test_kinds_come_from_driver_folders_type_and_name(net):
    add(net, "enp0", driver="e1000e", type="1\n")
    add(net, "enx1", driver="thunderbolt-net", type="1\n")
    add(net, "wlp2", driver="iwlwifi", type="1\n", folders=["wireless"])
    add(net, "wlan3", type="1\n", folders=["phy80211"])
    add(net, "tb0", type="1\n")
    add(net, "thunderbolt0", type="1\n")
    add(net, "ib0", type="32\n")
    add(net, "odd", type="\xff\xfe")
    names = ["enp0", "enx1", "wlp2", "wlan3", "tb0", "thunderbolt0", "ib0", "odd", "gone"]
    assert read_surroundings(names, net).kinds == {
        "enp0": "ethernet",
        "enx1": "thunderbolt",
        "wlp2": "wifi",
        "wlan3": "wifi",
        "tb0": "thunderbolt",
        "thunderbolt0": "thunderbolt",
        "ib0": "other",
        "odd": "other",
        "gone": "other",
    }


def test_bridge_is_of_the_kind_of_its_members(net):
    add(net, "enp0", type="1")
    add(net, "tb0", type="1")
    add(net, "lan", type="1", folders=["brif/enp0"])
    add(net, "mixed", type="1", folders=["brif/enp0", "brif/tb0"])
    known = read_surroundings(["enp0", "tb0", "lan", "mixed"], net)
    assert (known.kinds["lan"], known.kinds["mixed"]) == ("ethernet", "other")
    assert known.members == {"lan": ("enp0",), "mixed": ("enp0", "tb0")}


def test_end_of_a_tunnel_is_unusable_whatever_its_name(net):
    add(net, "office", type="65534", tun_flags="0x1001")
    add(net, "enp0", type="1")
    assert read_surroundings(["office", "enp0"], net).unusable == {"office"}


def test_other_systems_have_no_such_folder(net):
    assert read_surroundings(["en0"], net).kinds == {"en0": "other"}
