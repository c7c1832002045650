"""Turns of clients that wait."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.serving.turns import Turns


def test_a_client_s_requests_have_turns_one_behind_the_other():
    turns = Turns()
    assert [turns.next("a", num_waiting=number).turn for number in range(3)] == [0, 1, 2]


def test_who_comes_has_the_turn_that_is_being_served():
    turns = Turns()
    of_a = [turns.next("a", num_waiting=number) for number in range(9)]
    turns.served(of_a[5])
    assert of_a[5] < turns.next("b", num_waiting=3) < of_a[6]


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=60))
def test_nobody_is_passed_twice_by_another_while_it_waits(arrivals):
    turns, queue = Turns(), []
    for client in arrivals:
        queue.append((turns.next(client, num_waiting=len(queue)), client))
    order = []
    for turn, client in sorted(queue):
        turns.served(turn)
        order.append(client)
    for place, client in enumerate(order):
        earlier = order[:place].count(client)
        assert all(order[:place].count(other) <= earlier + 1 for other in set(order))
