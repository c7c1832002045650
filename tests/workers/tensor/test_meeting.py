"""Ranks find each other whatever else connects, and nobody else is let in."""

import contextlib
import itertools
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest

from protocol.messages import GroupPlan
from protocol.values import LayerRange, Peer, Route
from workers.model.shelf import Overtaken
from workers.tensor import meeting
from workers.tensor.group import GroupBroken, NotMet
from workers.tensor.meeting import _MAGIC, MEET_WITHIN_S, Call, Door, RankDoor, _proof, meet

SECRET = b"s" * 32


@pytest.fixture
def doors():
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Door(("127.0.0.1",)))) for _ in range(3)]


def call_of(doors, rank, secret=SECRET):
    return Call(rank, ("a", "b", "c")[: len(doors)], [("127.0.0.1", door.port) for door in doors], secret)


def met_by(doors, ranks, secrets=(SECRET,) * 3, is_over=lambda: False):
    """What each rank's meeting gives or raises."""
    found = {}

    def run(rank):
        try:
            found[rank] = meet(doors[rank], call_of(doors, rank, secrets[rank]), is_over)
        except (NotMet, Overtaken) as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    return found, lambda: [thread.join() for thread in threads]


def assert_met(found):
    for one, other in itertools.combinations(found, 2):
        found[one][other].sendall(b"%d" % one)
        assert found[other][one].recv(1) == b"%d" % one
    for connections in found.values():
        for connection in connections.values():
            connection.close()


def test_three_ranks_have_a_connection_for_each_pair(doors):
    found, join = met_by(doors, (0, 1, 2))
    join()
    assert_met(found)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100,
        _MAGIC,
        _MAGIC + b"\0\1" + bytes(16),
        _MAGIC + b"\xff\xff" + bytes(16),
    ],
)
def test_strangers_do_not_keep_ranks_apart(doors, said):
    strangers = [socket.create_connection(("127.0.0.1", doors[0].port)) for _ in range(20)]
    for stranger in strangers:
        stranger.sendall(said)
    found, join = met_by(doors[:2], (0, 1))
    join()
    assert_met(found)
    for stranger in strangers:
        stranger.close()


def test_who_repeats_the_proof_of_the_other_end_is_sent_away(doors):
    over = threading.Event()
    found, join = met_by(doors[:2], (0,), is_over=over.is_set)
    with socket.create_connection(("127.0.0.1", doors[0].port)) as stranger:
        stranger.sendall(_MAGIC + b"\0\1" + bytes(16))
        told = stranger.recv(48, socket.MSG_WAITALL)
        stranger.sendall(told[16:])
        assert stranger.recv(1) == b""
    over.set()
    join()
    assert isinstance(found[0], Overtaken)


def test_proofs_are_of_one_meeting_and_one_rank():
    call = call_of([Door(("127.0.0.1",))], 0)
    proofs = {
        _proof(each, role, rank, nonce, answer)
        for each in (call, call._replace(secret=b"t" * 32))
        for role in (b"hears", b"comes")
        for rank in (0, 1)
        for nonce in (b"n" * 16, b"m" * 16)
        for answer in (b"n" * 16, b"m" * 16)
    }
    assert len(proofs) == 32


def test_rank_of_another_plan_is_not_let_in(doors):
    over = threading.Event()
    found, join = met_by(doors[:2], (0, 1), (SECRET, b"t" * 32), over.is_set)
    assert not found
    over.set()
    join()
    assert all(isinstance(each, Overtaken) for each in found.values())


def test_rank_that_is_stopped_while_they_meet_keeps_nobody_from_what_is_wanted_instead(doors):
    over, asked = iter([False, False, False, True]), []
    with pytest.raises(Overtaken):
        meet(
            doors[1], call_of(doors[:2], 1), lambda: (asked.append(1), next(over))[1]
        )  # nobody answers at the other door
    assert len(asked) == 4
    (waiting,) = doors[0].came(0.0)
    assert waiting.recv(1)
    waiting.close()


def test_who_does_not_come_is_named(doors):
    times = itertools.count(0.0, MEET_WITHIN_S / 3)
    with pytest.raises(NotMet, match="b did not come to a in 10 s"):
        meet(doors[0], call_of(doors[:2], 0), lambda: False, lambda: next(times))


@pytest.mark.parametrize(
    ("hears", "why"), [(True, "10 s: it said nothing in time"), (False, "5 s: Connection refused")]
)
def test_rank_that_is_not_reached_is_named_with_its_address_and_waited_for_longer_while_its_door_hears(
    monkeypatch, doors, hears, why
):
    monkeypatch.setattr(meeting, "_SAY_WITHIN_S", 0.1)
    times = itertools.count(0.0, 4.0)
    if not hears:
        doors[0].close()
    with pytest.raises(NotMet, match=f"b did not reach a at 127.0.0.1, port {doors[0].port}, in {why}"):
        meet(doors[1], call_of(doors[:2], 1), lambda: False, lambda: next(times))
    assert next(times) == (16.0 if hears else 12.0)


def test_rank_without_an_address_is_named(doors):
    call = call_of(doors[:2], 1)._replace(addresses=[None, None])
    with pytest.raises(NotMet, match=r"links\.exclude of b leaves no address of a"):
        meet(doors[1], call, lambda: False)


def test_ranks_whose_transport_is_not_begun_leave_each_other():
    plan = GroupPlan(
        route=Route(("a", "b"), ranks=2), layers=(LayerRange(0, 1),), cut="{}", secret=SECRET.hex(), transport="ring"
    )
    doors = {name: RankDoor(("127.0.0.1",), lambda peer: peer.endpoint, lambda *_: None) for name in ("a", "b")}
    peers = {
        name: Peer(endpoint="tcp://127.0.0.1:1", public_key=name, rank_port=door.port) for name, door in doors.items()
    }
    over, found = threading.Event(), {}

    def give_up(meeting):
        over.set()
        meeting.waiting()

    doors["a"]._mlx.group = give_up
    doors["b"]._mlx.group = lambda meeting: meeting.control

    def run(name):
        try:
            found[name] = doors[name](plan, name, peers, over.is_set if name == "a" else lambda: False, lambda: None)
        except Overtaken as error:
            found[name] = error

    threads = [threading.Thread(target=run, args=(name,)) for name in doors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(found["a"], Overtaken)
    with pytest.raises(GroupBroken):
        found["b"].sum(mx.zeros(1))
    found["b"].close()


def test_all_ranks_meet_or_none(monkeypatch):
    monkeypatch.setattr(meeting, "MEET_WITHIN_S", 1.0)
    nowhere = {("c", "b")}  # to whom the other end is no address
    ranks = [
        RankDoor(
            ("127.0.0.1",),
            lambda peer, own=own: None if (own, peer.public_key) in nowhere else peer.endpoint,
            lambda *_: None,
        )
        for own in "abc"
    ]
    peers = {
        name: Peer(endpoint="tcp://127.0.0.1:1", public_key=name, rank_port=rank.port)
        for name, rank in zip("abc", ranks, strict=True)
    }
    plan = GroupPlan(route=Route(tuple("abc"), 3), layers=(LayerRange(0, 1),), cut="{}", secret="00" * 32)

    def met(own):
        try:
            ranks["abc".index(own)](plan, own, peers, lambda: False, lambda: None).close()
        except NotMet as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(met, "abc")) == [
            "",
            "c did not come to b in 1 s",
            "links.exclude of c leaves no address of b, with which it is to compute together",
        ]
        nowhere.clear()
        assert list(pool.map(met, "abc")) == [None, None, None]
