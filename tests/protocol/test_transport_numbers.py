"""What a receiver makes of the numbers of data links."""

import pytest

from protocol.codec import Envelope
from protocol.messages import Cancel
from protocol.transport import Arrival, LinkNumbers

NEXT, GAP, DROPPED = Arrival.NEXT, Arrival.GAP, Arrival.DROPPED


@pytest.fixture
def numbers():
    numbers = LinkNumbers()
    numbers.renew(7)
    return numbers


def accepted(numbers, *arrivals, epoch=7, sender=0):
    return [numbers.accept(Envelope(epoch, Cancel(sequence=1), (), sender, number)) for number in arrivals]


def test_messages_in_order_pass(numbers):
    assert accepted(numbers, 1, 2, 3) == [NEXT, NEXT, NEXT]


@pytest.mark.parametrize("second", [1, 3, 4])
def test_gap_or_repeat_is_told_once_and_breaks_the_link(numbers, second):
    assert accepted(numbers, 1, second, 2, 3) == [NEXT, GAP, DROPPED, DROPPED]


def test_first_message_must_be_the_first(numbers):
    assert accepted(numbers, 2, 1) == [GAP, DROPPED]


def test_other_links_go_on_when_one_breaks(numbers):
    assert accepted(numbers, 5, sender=1) == [GAP]
    assert accepted(numbers, 1, 2, sender=2) == [NEXT, NEXT]


def test_what_is_not_numbered_always_passes(numbers):
    assert accepted(numbers, 2) == [GAP]
    assert accepted(numbers, 0, 0) == [NEXT, NEXT]
    assert accepted(numbers, 0, epoch=3) == [NEXT]


def test_other_epoch_is_dropped_and_breaks_nothing(numbers):
    assert accepted(numbers, 1, 9, epoch=6) == [DROPPED, DROPPED]
    assert accepted(numbers, 1, 2) == [NEXT, NEXT]


def test_new_epoch_begins_at_one_with_whole_links(numbers):
    accepted(numbers, 1, 2, 9)
    numbers.renew(8)
    assert accepted(numbers, 1, 2, epoch=8) == [NEXT, NEXT]
