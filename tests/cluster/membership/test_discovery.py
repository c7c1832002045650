"""What a cluster announces of its door, what is made of what others announce, and that the network may fail at any of it."""

import sys
import threading
import types

import pytest

from cluster.membership import discovery
from cluster.membership.discovery import (
    KIND,
    Announcer,
    DiscoveryFailed,
    browse_by_mdns,
    fingerprint_of,
    own_door,
    read_door,
    register_by_mdns,
)
from protocol.codec import PROTOCOL
from tests.support.running_cluster import wait_until

KEY = "k" * 40


def door(incarnation=3, addresses=("10.0.0.1",)):
    return own_door("mini.local", incarnation, KEY, 4711, addresses)


class Network:
    """Stands for what announces: who is announced now, and whether that works."""

    def __init__(self):
        self.announced = []
        self.why_not = None

    def register(self, door):
        if self.why_not:
            raise DiscoveryFailed(self.why_not)
        self.announced.append(door)
        return lambda: self.announced.remove(door)


def as_txt(properties):
    return {key.encode(): value.encode() for key, value in properties.items()}


def test_door_is_announced_without_its_key_and_anew_for_each_incarnation():
    own = door()
    assert (own.host, own.port, own.endpoints) == ("mini", 4711, ("tcp://10.0.0.1:4711",))
    assert own.properties == {"protocol": str(PROTOCOL), "fingerprint": fingerprint_of(KEY), "host": "mini"}
    assert KEY not in repr(own)
    assert own.instance != door(incarnation=4).instance


def test_long_name_of_a_host_leaves_room_for_what_tells_instances_apart():
    long = own_door("m" * 200, (1 << 32) - 1, KEY, 4711, ())
    assert len(long.instance) <= 63
    assert str((1 << 32) - 1) in long.instance


def test_what_is_announced_is_read_as_it_was_meant():
    own = door(addresses=("10.0.0.1", "fd00::1"))
    assert read_door(own.instance, own.port, own.addresses, as_txt(own.properties)) == own


@pytest.mark.parametrize(
    "changed",
    [
        {"fingerprint": "short"},
        {"fingerprint": "G" * 32},
        {"protocol": ""},
        {"protocol": "-1"},
        {"protocol": "9" * 5000},
        {"protocol": "\uff14"},
    ],
)
def test_what_is_no_door_is_nobody(changed):
    own = door()
    assert read_door(own.instance, own.port, own.addresses, as_txt(own.properties | changed)) is None


def test_announcement_without_port_or_text_is_nobody():
    own = door()
    assert read_door(own.instance, None, own.addresses, as_txt(own.properties)) is None
    assert read_door(own.instance, 1, own.addresses, {b"\xff": None}) is None


def test_names_of_strangers_cannot_write_on_a_terminal_and_their_addresses_are_few_and_usable():
    own = door()
    found = read_door(
        "x",
        1,
        ["224.0.0.1", "fe80::1", "mac.local", *["10.0.0.2"] * 99],
        as_txt(own.properties | {"host": "a\x1b[31m"}),
    )
    assert found.host == "a--31m"
    assert set(found.addresses) == {"10.0.0.2"}
    assert len(found.addresses) <= 16


def test_changed_addresses_are_announced_in_place_of_the_old_ones():
    network, wanted = Network(), [door()]
    announcer = Announcer(lambda: wanted[0], network.register)
    announcer.turn()
    announcer.turn()
    assert network.announced == wanted
    wanted[0] = door(addresses=("10.0.0.9",))
    announcer.turn()
    assert network.announced == wanted
    wanted[0] = None
    announcer.turn()
    assert network.announced == []


def test_network_that_does_not_let_announce_is_said_once_and_tried_again(caplog):
    caplog.set_level("INFO")
    network = Network()
    network.why_not = "port 5353 is taken"
    announcer = Announcer(door, network.register)
    announcer.turn()
    announcer.turn()
    assert caplog.text.count("port 5353 is taken") == 1
    network.why_not = None
    announcer.turn()
    assert network.announced == [door()]


def test_announcement_lasts_until_it_is_closed():
    network = Network()
    announcer = Announcer(door, network.register)
    announcer.start()
    wait_until(lambda: network.announced, "the announcement")
    announcer.close()
    assert network.announced == []


def test_what_is_still_being_announced_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(discovery, "CLOSE_S", 3600.0)
    asked, answered = threading.Event(), threading.Event()

    def register(_door):
        asked.set()
        answered.wait()
        raise DiscoveryFailed("too late")

    announcer = Announcer(door, register)
    announcer.start()
    asked.wait()
    announcer.close()
    answered.set()


def test_announcer_that_never_began_closes():
    Announcer(door, Network().register).close()


class FakeMdns(types.ModuleType):
    """In place of the library: what was registered in one network, which may fail."""

    class Error(Exception): ...

    def __init__(self, fails=None, refuses=None):
        super().__init__("zeroconf")
        fake, self.known, self.opened = self, {}, []

        class Zeroconf:
            def __init__(self, interfaces=None, use_asyncio=None):
                if fails:
                    raise fails
                self.interfaces, self.is_open = interfaces, True
                fake.opened.append(self)

            def register_service(self, info):
                if refuses:
                    raise refuses
                fake.known[info.name] = info

            def get_service_info(self, kind, name, timeout_ms):
                return fake.known[name]

            def close(self):
                self.is_open = False

        class ServiceInfo:
            def __init__(self, kind, name, *, port, parsed_addresses, properties, server):
                self.name, self.port, self.server = name, port, server
                self.properties = as_txt(properties)
                self.parsed_addresses = lambda: parsed_addresses

        def browser(asker, kind, handlers):
            for name in fake.known:
                handlers[0](zeroconf=asker, service_type=kind, name=name, state_change=None)

        self.Zeroconf, self.ServiceInfo, self.ServiceBrowser = Zeroconf, ServiceInfo, browser


@pytest.fixture
def mdns(monkeypatch):
    def use(**options):
        fake = FakeMdns(**options)
        monkeypatch.setitem(sys.modules, "zeroconf", fake)
        return fake

    return use


def test_what_one_registers_another_finds_in_the_networks_of_its_addresses_alone(mdns):
    fake = mdns()
    take_back = register_by_mdns(door())
    assert fake.opened[0].interfaces == ["10.0.0.1"]
    assert list(browse_by_mdns(0.01)) == [
        read_door(f"{door().instance}.{KIND}", 4711, ["10.0.0.1"], as_txt(door().properties))
    ]
    take_back()
    assert not any(each.is_open for each in fake.opened)


@pytest.mark.parametrize("error", [OSError(98, "Address already in use"), RuntimeError("no adapter"), FakeMdns.Error()])
def test_every_failure_of_the_library_has_one_name(mdns, error):
    mdns(fails=error)
    with pytest.raises(DiscoveryFailed):
        register_by_mdns(door())
    with pytest.raises(DiscoveryFailed):
        next(browse_by_mdns(0.01))


def test_registration_that_is_refused_leaves_nothing_open(mdns):
    fake = mdns(refuses=FakeMdns.Error("taken"))
    with pytest.raises(DiscoveryFailed, match="taken"):
        register_by_mdns(door())
    assert not fake.opened[0].is_open
