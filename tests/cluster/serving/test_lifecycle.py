"""Every state of a request with everything that can happen to it."""

from itertools import product

import pytest

from cluster.serving.counts import Counts
from cluster.serving.lifecycle import TRANSITIONS, RequestEvent, RequestState, following
from protocol.errors import IllegalEvent

S, E = RequestState, RequestEvent
LEGAL = {
    (S.WAITING, E.ADMIT): S.RUNNING,
    (S.WAITING, E.FAIL): S.FAILED,
    (S.RUNNING, E.LOSE_ROUTE): S.REASSIGNED,
    (S.RUNNING, E.FINISH): S.FINISHED,
    (S.RUNNING, E.FAIL): S.FAILED,
    (S.REASSIGNED, E.ADMIT): S.RUNNING,
    (S.REASSIGNED, E.FAIL): S.FAILED,
    (S.RUNNING, E.PAUSE): S.PAUSED,
    (S.PAUSED, E.ADMIT): S.RUNNING,
    (S.PAUSED, E.FINISH): S.FINISHED,
    (S.PAUSED, E.FAIL): S.FAILED,
}


@pytest.mark.parametrize(("state", "event"), list(product(S, E)))
def test_every_pair_leads_where_it_should_or_is_refused(state, event):
    if (state, event) in LEGAL:
        assert following(state, event) is LEGAL[state, event]
    else:
        with pytest.raises(IllegalEvent, match=f"{state} cannot {event}"):
            following(state, event)
    assert len(TRANSITIONS) == len(LEGAL)


def test_counts_follow_a_request_that_went_on_and_forget_one_that_left():
    counts = Counts()
    counts.arrived()
    counts.arrived()
    state = S.WAITING
    for event in (E.ADMIT, E.LOSE_ROUTE, E.ADMIT, E.FINISH):
        after = following(state, event)
        counts.moved(state, after)
        state = after
    counts.left(state)
    counts.left(S.WAITING)
    shown = counts.requests
    assert (shown.running, shown.waiting, shown.finished, shown.failed, shown.resumed) == (0, 0, 1, 0, 1)


def test_share_of_tokens_that_needed_no_computing():
    counts = Counts()
    assert counts.reuse.hit_rate == 0.0
    counts.read(30)
    counts.reused(10)
    assert (counts.reuse.prompt_tokens, counts.reuse.cached_tokens, counts.reuse.hit_rate) == (30, 10, 0.3333)
