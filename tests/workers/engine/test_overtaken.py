"""What makes the work for an earlier message useless is seen while that is under way, and only that."""

import pytest

from protocol.codec import Envelope
from protocol.messages import Cancel, InspectModel, PrepareStage, Shutdown
from protocol.values import LayerRange, Peer
from workers.engine.arrivals import Adrift, Arrivals

NOWHERE = Peer(endpoint="inproc://nowhere", public_key="")
PREPARE = PrepareStage(model="m", reply_to=NOWHERE, layers=LayerRange(0, 1))


@pytest.mark.parametrize("message", [PREPARE, Shutdown()])
def test_newer_wish_overtakes_until_its_turn(message):
    arrivals = Arrivals("w")
    arrivals.post(Envelope(0, PREPARE))
    assert arrivals.next(wait_s=None).message == PREPARE
    assert not arrivals.is_overtaken
    arrivals.post(Envelope(0, message))
    assert arrivals.is_overtaken
    arrivals.next(wait_s=None)
    assert not arrivals.is_overtaken


@pytest.mark.parametrize("message", [Cancel(sequence=1), InspectModel(model="m", reply_to=NOWHERE), Adrift()])
def test_what_asks_for_nothing_else_does_not(message):
    arrivals = Arrivals("w")
    arrivals.post(Envelope(0, message))
    assert not arrivals.is_overtaken
