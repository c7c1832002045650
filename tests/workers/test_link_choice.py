"""Which address of a peer is sent to: by measurement, whatever the interfaces are called, with what failed last."""

import ipaddress

import pytest

from protocol.interfaces.names import LinkNames
from protocol.interfaces.values import LinkKind
from protocol.transport.addressing import this_host
from protocol.transport.echo import Measured
from protocol.values import Address, Peer
from tests.support.manual_clock import ManualClock
from workers.link_choice import HEALTHY_S, LinkChoice, MoveAdvice

NETWORKS = {ipaddress.ip_interface("10.0.0.1/24"): "wlan0", ipaddress.ip_interface("10.1.0.1/24"): "tb-b"}
KINDS = {"wlan0": LinkKind.WIFI, "tb-b": LinkKind.THUNDERBOLT}
WIFI, CABLE, ROUTED = "tcp://10.0.0.2:5", "tcp://10.1.0.2:5", "tcp://172.16.0.2:5"
FAST = Measured(round_trip_s=1e-4, bytes_per_s=1e9)
SLOW = Measured(round_trip_s=5e-3, bytes_per_s=1e7)
LOADED = Measured(round_trip_s=1e-4, bytes_per_s=float("inf"))


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def choice(clock):
    choice = LinkChoice(NETWORKS, {}, clock)
    choice.renew({"b": peer()})
    return choice


def choice_with(clock, **names):
    choice = LinkChoice(NETWORKS, {}, clock, LinkNames(**names))
    choice.renew({"b": peer()})
    return choice


def peer(*endpoints):
    endpoints = endpoints or (ROUTED, WIFI, CABLE)
    addresses = tuple(Address(endpoint=each, interface="x") for each in endpoints)
    return Peer(endpoint="tcp://127.0.0.1:5", public_key="k" * 40, host="b", addresses=addresses, answer_port=6)


def begin_epoch(choice, to=None):
    """As data links do it: what is chosen holds until the next."""
    to = to or peer()
    choice.renew({"b": to})
    return choice.choose(to)


def test_unmeasured_a_common_network_counts_then_the_kind(choice):
    assert begin_epoch(choice) == WIFI
    choice.kinds = KINDS
    assert begin_epoch(choice) == CABLE
    assert begin_epoch(choice, peer(ROUTED)) == ROUTED


@pytest.mark.parametrize("kinds", [{}, KINDS, {"wlan0": LinkKind.THUNDERBOLT, "tb-b": LinkKind.WIFI}])
@pytest.mark.parametrize(("best", "worse"), [(WIFI, CABLE), (CABLE, WIFI)])
def test_measured_the_fastest_is_used_whatever_it_is_called(choice, kinds, best, worse):
    choice.kinds = kinds
    choice.measured({best: FAST})
    choice.measured({worse: SLOW})
    assert begin_epoch(choice) == best


def test_better_address_is_worth_an_epoch_when_nothing_runs(choice):
    assert begin_epoch(choice) == WIFI
    choice.measured({WIFI: SLOW})
    assert choice.verdict() is MoveAdvice.STAY
    choice.measured({CABLE: FAST})
    assert choice.verdict() is MoveAdvice.WHEN_IDLE
    assert begin_epoch(choice) == CABLE
    assert choice.verdict() is MoveAdvice.STAY


def test_a_little_better_is_worth_nothing(choice):
    begin_epoch(choice)
    choice.measured({WIFI: FAST})
    choice.measured({CABLE: Measured(round_trip_s=0.9e-4, bytes_per_s=1e9)})
    assert choice.verdict() is MoveAdvice.STAY


def test_link_that_became_three_times_slower_is_left(choice):
    choice.measured({CABLE: FAST})
    choice.measured({WIFI: Measured(round_trip_s=4e-4, bytes_per_s=5e8)})
    assert begin_epoch(choice) == CABLE
    choice.measured({CABLE: Measured(round_trip_s=2e-3, bytes_per_s=2e8)})
    assert choice.verdict() is MoveAdvice.WHEN_IDLE  # once may be chance
    assert choice.verdict() is MoveAdvice.NOW
    assert begin_epoch(choice) == WIFI


def test_slow_link_without_a_better_one_is_kept(choice):
    choice.measured({CABLE: FAST})
    choice.measured({WIFI: SLOW})
    assert begin_epoch(choice) == CABLE
    choice.measured({CABLE: Measured(round_trip_s=1e-3, bytes_per_s=3e7)})
    assert choice.verdict() is MoveAdvice.STAY


def test_link_that_broke_comes_last_until_it_has_been_healthy_for_a_while(choice, clock):
    choice.measured({CABLE: FAST})
    choice.measured({WIFI: SLOW})
    choice.lost(CABLE)
    assert begin_epoch(choice) == WIFI
    choice.measured({CABLE: None, WIFI: SLOW})
    clock.now += 10 * HEALTHY_S
    assert choice.verdict() is MoveAdvice.STAY
    choice.measured({CABLE: FAST})
    clock.now += HEALTHY_S - 1
    choice.measured({CABLE: FAST})
    assert choice.verdict() is MoveAdvice.STAY
    clock.now += 2
    assert choice.verdict() is MoveAdvice.WHEN_IDLE
    assert begin_epoch(choice) == CABLE


def test_link_that_fails_again_while_it_recovers_begins_anew(choice, clock):
    choice.measured({CABLE: FAST})
    choice.measured({WIFI: SLOW})
    choice.lost(CABLE)
    choice.measured({CABLE: FAST})
    clock.now += HEALTHY_S - 1
    choice.measured({CABLE: None, WIFI: SLOW})
    choice.measured({CABLE: FAST})
    clock.now += 2
    assert begin_epoch(choice) == WIFI


def test_where_all_have_failed_the_fastest_is_tried(choice):
    choice.measured({CABLE: FAST})
    choice.measured({WIFI: SLOW})
    for endpoint in (CABLE, WIFI, ROUTED):
        choice.lost(endpoint)
    assert begin_epoch(choice) == CABLE


def test_where_all_have_failed_one_that_answers_again_is_used_before_a_silent_one(choice):
    choice.measured({CABLE: FAST})
    choice.measured({WIFI: SLOW})
    for endpoint in (CABLE, WIFI):
        choice.lost(endpoint)
    choice.measured({WIFI: SLOW})
    assert begin_epoch(choice, peer(CABLE, WIFI)) == WIFI
    figures = {each.address: each.round_trip_us for each in choice.figures()}
    assert figures == {CABLE: None, WIFI: 5000}


def test_bandwidth_of_an_idle_time_holds_while_requests_run(choice):
    choice.measured({CABLE: SLOW})
    choice.measured({CABLE: LOADED})
    figures = {each.address: each for each in choice.figures()}
    assert (figures[CABLE].bytes_per_s, figures[CABLE].round_trip_us) == (10**7, 100)


def test_figures_name_every_address_and_the_one_in_use(choice):
    choice.kinds = KINDS
    choice.measured({CABLE: FAST})
    begin_epoch(choice)
    figures = {each.address: each for each in choice.figures()}
    assert {each.to for each in figures.values()} == {"b"}
    assert [figures[each].in_use for each in (ROUTED, WIFI, CABLE)] == [False, False, True]
    assert [figures[each].interface for each in (ROUTED, WIFI, CABLE)] == ["", "wlan0", "tb-b"]
    assert [figures[each].round_trip_us for each in (ROUTED, WIFI, CABLE)] == [None, None, 100]


def test_peers_on_this_host_are_reached_over_loopback_and_not_measured(choice):
    near = Peer(
        endpoint="tcp://127.0.0.1:9", public_key="n" * 40, host=this_host(), addresses=peer().addresses, answer_port=6
    )
    choice.renew({"near": near})
    assert choice.choose(near) == "tcp://127.0.0.1:9"
    assert choice.elsewhere == {}
    assert choice.figures() == ()
    assert choice.verdict() is MoveAdvice.STAY


def test_peer_that_cannot_be_measured_is_sent_to_and_says_nothing(choice):
    mute = Peer(endpoint="tcp://127.0.0.1:9", public_key="m" * 40, host="b", addresses=peer().addresses)
    assert begin_epoch(choice, mute) == WIFI
    assert (choice.elsewhere, choice.figures(), choice.verdict()) == ({}, (), MoveAdvice.STAY)


def test_peer_that_is_silent_everywhere_is_no_addresss_fault(choice):
    choice.measured({CABLE: FAST, WIFI: SLOW})
    choice.measured({CABLE: None, WIFI: None})
    assert begin_epoch(choice) == CABLE
    choice.measured({CABLE: None, WIFI: SLOW})
    assert begin_epoch(choice) == WIFI


@pytest.mark.parametrize("name", ["10.0.0.2", "10.0.0.0/24", "wlan0"])
def test_preferred_is_used_where_another_is_faster_and_not_where_it_is_dead(clock, name):
    choice = choice_with(clock, prefer=(name,))
    assert begin_epoch(choice) == WIFI
    choice.measured({CABLE: FAST, WIFI: SLOW})
    assert begin_epoch(choice) == WIFI
    assert choice.verdict() is MoveAdvice.STAY
    choice.lost(WIFI)
    assert begin_epoch(choice) == CABLE


def test_first_of_the_preferred_that_works_is_used(clock):
    choice = choice_with(clock, prefer=("172.16.0.0/12", "tb-b"))
    choice.measured({WIFI: FAST, CABLE: SLOW, ROUTED: SLOW})
    assert begin_epoch(choice) == ROUTED
    choice.lost(ROUTED)
    assert begin_epoch(choice) == CABLE


def test_preferred_that_works_again_is_taken_back_when_nothing_runs(clock):
    choice = choice_with(clock, prefer=("wlan0",))
    choice.measured({CABLE: FAST, WIFI: SLOW})
    choice.lost(WIFI)
    assert begin_epoch(choice) == CABLE
    choice.measured({CABLE: FAST, WIFI: SLOW})
    assert choice.verdict() is MoveAdvice.STAY
    clock.now += HEALTHY_S + 1
    assert choice.verdict() is MoveAdvice.WHEN_IDLE
    assert begin_epoch(choice) == WIFI


@pytest.mark.parametrize("name", ["10.1.0.2", "10.1.0.0/24", "tb-b", "10.1.0.1"])
def test_excluded_address_is_neither_sent_to_nor_measured_nor_shown(clock, name):
    choice = choice_with(clock, exclude=(name,))
    choice.measured({WIFI: SLOW})
    choice.lost(WIFI)
    assert begin_epoch(choice, peer(CABLE, WIFI)) == WIFI
    assert [each.endpoint for each in choice.elsewhere["b"].addresses] == [WIFI]
    assert [each.address for each in choice.figures()] == [WIFI]


def test_peer_whose_addresses_are_all_excluded_is_not_sent_to(clock):
    choice = choice_with(clock, exclude=("10.0.0.0/8", "172.16.0.2"))
    assert begin_epoch(choice) is None
    assert (choice.elsewhere, choice.figures(), choice.verdict()) == ({}, (), MoveAdvice.STAY)
