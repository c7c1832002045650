"""Questions and answers of megabytes between hosts: who is answered, and what one who does not read costs."""

import socket
import threading
from contextlib import closing

import pytest

from protocol.errors import AddressUnavailable
from protocol.transport import KeyPair
from protocol.transport.asking import IN_FLIGHT, ZmqAnswerer, ZmqAskers

KEYS, MINE, STRANGER = (KeyPair.generate() for _ in range(3))
BLOCK = bytes(4 << 20)
LIMIT_S = 20.0


@pytest.fixture
def answerer():
    admitted = lambda key: key != STRANGER.public  # noqa: E731
    with closing(ZmqAnswerer(lambda asked: [asked, BLOCK], keys=KEYS, admits=admitted)) as answerer:
        answerer.start()
        yield answerer


def open_to(answerer, keys=MINE):
    return closing(ZmqAskers(keys).open(f"tcp://127.0.0.1:{answerer.port}", KEYS.public))


def test_every_question_gets_the_answer_of_its_number(answerer):
    with open_to(answerer) as asker:
        for number in range(IN_FLIGHT):
            asker.ask(number, b"%d" % number)
        answers = dict(asker.receive(LIMIT_S) for _ in range(IN_FLIGHT))
    assert {number: bytes(frames[0]) for number, frames in answers.items()} == {n: b"%d" % n for n in range(IN_FLIGHT)}
    assert all(len(frames[1]) == len(BLOCK) for frames in answers.values())


def test_who_is_no_member_gets_no_answer(answerer):
    with open_to(answerer, STRANGER) as asker:
        asker.ask(1, b"?")
        assert asker.receive(1.0) is None


def test_member_that_is_none_any_more_gets_no_answer():
    members = {MINE.public}
    with closing(ZmqAnswerer(lambda asked: [asked], keys=KEYS, admits=members.__contains__)) as answerer:
        answerer.start()
        with open_to(answerer) as asker:
            asker.ask(1, b"?")
            assert asker.receive(LIMIT_S) is not None
            members.clear()
            asker.ask(2, b"?")
            assert asker.receive(1.0) is None


def test_one_who_asks_and_does_not_read_holds_nobody_up(answerer):
    with open_to(answerer) as stalled, open_to(answerer) as reader:
        for number in range(200):
            stalled.ask(number, b"?")
        for number in range(20):
            reader.ask(number, b"?")
            answer = reader.receive(LIMIT_S)
            assert answer is not None
            assert answer[0] == number


@pytest.mark.parametrize("frames", [[b"", b""], [bytes(7), b"?"], [bytes(8), b"?", b"?"], [b"x"] * 100])
def test_what_is_no_question_has_no_answer_and_costs_none(answerer, frames):
    with open_to(answerer) as asker:
        for number in range(2 * IN_FLIGHT):
            asker._socket.send_multipart(frames)
            asker.ask(number, b"?")
            assert asker.receive(LIMIT_S)[0] == number


def test_questions_that_raise_are_answered_with_nothing_and_cost_no_other():
    def answer(asked):
        return [asked] if asked == b"?" else 1 / 0

    with closing(ZmqAnswerer(answer, keys=KEYS, admits=lambda _: True)) as answerer:
        answerer.start()
        for _ in range(10):
            with open_to(answerer) as asker:
                for number in range(IN_FLIGHT):
                    asker.ask(number, b"!")
                assert [asker.receive(LIMIT_S)[1] for _ in range(IN_FLIGHT)] == [[]] * IN_FLIGHT
        with open_to(answerer) as asker:
            asker.ask(1, b"?")
            assert asker.receive(LIMIT_S) == (1, [b"?"])


def test_question_that_is_answered_slowly_holds_no_other_up():
    goes_on = threading.Event()

    def answer(asked):
        if asked == b"slow":
            goes_on.wait(LIMIT_S)
        return [asked]

    with closing(ZmqAnswerer(answer, keys=KEYS, admits=lambda _: True)) as answerer:
        answerer.start()
        with open_to(answerer) as asker:
            asker.ask(1, b"slow")
            asker.ask(2, b"quick")
            assert asker.receive(LIMIT_S)[0] == 2
            goes_on.set()
            assert asker.receive(LIMIT_S)[0] == 1


def test_until_somebody_connects_it_is_one_thread():
    before = set(threading.enumerate())
    with closing(ZmqAnswerer(lambda asked: [asked], keys=KEYS, admits=lambda _: True)) as answerer:
        answerer.start()
        assert {thread.name for thread in set(threading.enumerate()) - before} == {"answers"}
        with open_to(answerer) as asker:
            asker.ask(1, b"?")
            assert asker.receive(LIMIT_S)[0] == 1


def _has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has_ipv6(), reason="this host has no IPv6")
def test_every_address_that_it_listens_at_leads_to_it():
    with closing(ZmqAnswerer(lambda asked: [asked], listen=["::1"], keys=KEYS, admits=lambda _: True)) as answerer:
        answerer.start()
        for host in ("127.0.0.1", "[::1]"):
            with closing(ZmqAskers(MINE).open(f"tcp://{host}:{answerer.port}", KEYS.public)) as asker:
                asker.ask(1, b"?")
                assert asker.receive(LIMIT_S)[0] == 1


def test_address_that_is_none_of_this_host_is_refused_with_what_to_do():
    with pytest.raises(AddressUnavailable, match=r"192\.0\.2\.1 cannot be used .*choose another"):
        ZmqAnswerer(lambda asked: [asked], listen=["192.0.2.1"], keys=KEYS, admits=lambda _: True)


def test_one_that_never_began_is_closed():
    ZmqAnswerer(lambda asked: [asked], keys=KEYS, admits=lambda _: True).close()
