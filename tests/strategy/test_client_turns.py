"""Clients take turns, and the things of one take turns among themselves."""

from hypothesis import given
from hypothesis import strategies as st

from strategy.client_turns import ClientTurns


def all_of(turns):
    found = []
    while turns:
        found.append(turns.pop())
    return found


def test_clients_take_turns_and_their_things_follow_each_other():
    turns = ClientTurns()
    for thing in ("a1", "a2", "a3", "b1", "c1", "b2"):
        turns.add(thing[0], thing)
    assert turns.next_client == "a"
    assert all_of(turns) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_what_is_added_again_goes_behind_the_others():
    turns = ClientTurns()
    for thing in ("a1", "a2", "b1"):
        turns.add(thing[0], thing)
    order = []
    for _ in range(8):
        thing = turns.pop()
        order.append(thing)
        turns.add(thing[0], thing)
    assert order == ["a1", "b1", "a2", "b1", "a1", "b1", "a2", "b1"]


def test_what_is_taken_early_had_its_clients_turn():
    turns = ClientTurns()
    for thing in ("a1", "a2", "b1", "b2", "c1"):
        turns.add(thing[0], thing)
    assert list(turns.in_turn()) == [("a", "a1"), ("b", "b1"), ("c", "c1"), ("a", "a2"), ("b", "b2")]
    turns.take("b", "b1")
    assert all_of(turns) == ["a1", "c1", "b2", "a2"]


def test_what_is_taken_out_has_no_turn():
    turns = ClientTurns()
    for thing in ("a1", "a2", "b1"):
        turns.add(thing[0], thing)
    turns.remove("b", "b1")
    turns.remove("a", "a1")
    turns.remove("a", "a1")
    turns.remove("c", "c1")
    assert all_of(turns) == ["a2"]
    assert not turns


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_everything_comes_once_and_nobody_waits_for_two_of_another(clients):
    turns = ClientTurns()
    for number, client in enumerate(clients):
        turns.add(client, (client, number))
    found = all_of(turns)
    assert sorted(found) == sorted((client, number) for number, client in enumerate(clients))
    for client in set(clients):
        order = [each for each, _ in found]
        first, last = order.index(client), len(order) - 1 - order[::-1].index(client)
        for other in set(clients) - {client}:
            between = order[first : last + 1]
            runs = "".join("x" if each == other else "|" if each == client else "" for each in between)
            assert "xx" not in runs
