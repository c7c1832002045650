"""Workers of hosts that are away: nobody waits for them, and they are asked for again without end."""

from cluster.membership.member import Member, Whereabouts, WorkerState
from cluster.membership.restarts import LONGEST_DELAY_S, Restarts
from cluster.membership.roster import Admitted, Lost, Roster, Start
from protocol.codec import PROTOCOL
from protocol.messages import Join
from protocol.values import Peer

WHY = "mac2 does not answer at mac2.local; wake it up, and check the cable and the network"


def roster():
    members = [
        Member("worker-0", memory_limit_bytes=1),
        Member("mac2", memory_limit_bytes=0, place=Whereabouts(host="mac2")),
    ]
    return Roster(members, secret="ab" * 16, restarts=Restarts())


def test_host_that_is_away_is_not_waited_for_and_says_why():
    subject = roster()
    assert subject.awaited == ("worker-0", "mac2")
    assert subject.unavailable("mac2", WHY, 1.0) == [Lost("mac2", WHY, died=True)]
    assert subject.awaited == ("worker-0",)
    assert subject.members["mac2"].place.why_away == WHY
    assert subject.missing() == ("worker-0", "mac2")
    assert subject.may_be_away("mac2")
    assert not subject.may_be_away("worker-0")


def test_host_that_is_away_is_asked_again_ever_more_seldom_and_never_left_out():
    subject, now, waits = roster(), 0.0, []
    for _ in range(12):
        subject.unavailable("mac2", WHY, now)
        began = now
        while Start("mac2") not in subject.tick(now):
            now += 0.5
        waits.append(now - began)
        assert subject.members["mac2"].state is WorkerState.JOINING
        assert subject.awaited == ("worker-0",)
    assert waits[:3] == [1.0, 2.0, 4.0]
    assert waits[-1] == LONGEST_DELAY_S
    assert subject.left_out == frozenset()


def test_host_that_comes_after_all_is_away_no_more():
    subject = roster()
    subject.unavailable("mac2", WHY, 1.0)
    subject.tick(100.0)
    peer = Peer(endpoint="tcp://mac2", public_key="k" * 40)
    secret = {"protocol": PROTOCOL, "secret": "ab" * 16}
    join = Join(**secret, name="mac2", host="there", pid=7, peer=peer, data=peer, memory_limit_bytes=9)
    assert subject.joined(join, 101.0) == [Admitted("mac2")]
    assert subject.members["mac2"].place == Whereabouts(host="mac2")
    assert subject.awaited == ("worker-0", "mac2")
