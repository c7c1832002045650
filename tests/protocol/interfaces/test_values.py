"""Facts of hosts: they cross the wire unchanged, and kinds have their order."""

import msgspec
import pytest

from protocol.interfaces.values import HostFacts, LinkKind, MacFacts, ThunderboltPort, kind_of_bridge
from tests.protocol.interfaces.recorded import FOLDERS, host

KINDS = {"en1": LinkKind.THUNDERBOLT, "en2": LinkKind.THUNDERBOLT, "en3": LinkKind.ETHERNET}


@pytest.mark.parametrize("folder", FOLDERS)
def test_facts_of_a_host_are_the_same_after_the_wire(folder):
    facts = host(folder)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(facts), type=HostFacts) == facts


def test_kinds_go_from_fast_to_slow():
    assert [*LinkKind] == ["thunderbolt", "ethernet", "wifi", "other"]


@pytest.mark.parametrize(
    ("members", "kind"),
    [(("en1", "en2"), "thunderbolt"), (("en1", "en3"), "other"), (("en9",), "other"), ((), "ethernet")],
)
def test_bridge_is_of_the_kind_of_its_members(members, kind):
    assert kind_of_bridge(members, KINDS, LinkKind.ETHERNET) == kind


def test_port_without_a_number_has_no_device():
    assert MacFacts().device_of(ThunderboltPort(receptacle=None)) is None
    assert MacFacts().most_bits_per_s is None
