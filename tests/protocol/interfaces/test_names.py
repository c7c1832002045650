"""What names of addresses, networks and interfaces fit."""

import pytest

from protocol.interfaces.names import LinkNames, is_link_name


@pytest.mark.parametrize(
    "text", ["10.0.0.1", "10.0.0.0/24", "fd00::1", "fd00::/8", "en0", "tb-a", "en0.100", "Ethernet"]
)
def test_addresses_networks_and_interfaces_are_names(text):
    assert is_link_name(text)


@pytest.mark.parametrize("text", ["", "10.0.0", "10.0.0.1/24", "10.0.0.0/33", "en0/1", "-en0", "en 0", "e" * 16, "*"])
def test_anything_else_is_none(text):
    assert not is_link_name(text)


@pytest.mark.parametrize(
    ("address", "interfaces", "place"),
    [
        ("10.0.0.1", (), 0),
        ("10.0.0.2", (), 2),
        ("10.1.0.1", ("en0",), 1),
        ("10.1.0.1", ("en1", "en0"), 1),
        ("10.1.0.1", ("en1",), 3),
        ("fd00::1", (), 3),
        ("fe80::1%en0", (), 3),
        ("mac.local", (), 3),
    ],
)
def test_first_name_that_fits_counts(address, interfaces, place):
    assert LinkNames(prefer=("10.0.0.1", "en0", "10.0.0.0/24")).preference(address, interfaces) == place


def test_scope_of_an_address_does_not_count():
    assert LinkNames(exclude=("fe80::/10",)).excludes("fe80::1%en0")


def test_unknown_are_interfaces_that_are_none():
    names = LinkNames(prefer=("en0", "10.0.0.1"), exclude=("en7", "10.0.0.0/24"))
    assert names.unknown(["en0", "lo0"]) == ["en7"]
