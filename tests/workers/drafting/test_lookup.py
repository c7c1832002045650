"""What a text repeats is found, and nothing where it does not."""

from hypothesis import given
from hypothesis import strategies as st

from workers.drafting.lookup import Lookup

ids = st.lists(st.integers(0, 5), max_size=60)


def test_what_followed_the_last_tokens_before_is_guessed():
    assert Lookup().guess([1, 2, 3, 4, 5, 6, 9, 2, 3, 4], 3) == [5, 6, 9]


def test_nothing_is_guessed_where_nothing_repeats():
    lookup = Lookup()
    assert not lookup.expects(list(range(50)))
    assert lookup.guess(list(range(50)), 4) == []


def test_guesses_behind_guesses_stand_behind_those():
    tokens = [1, 2, 3, 4, 5, 6, 9, 2, 3, 4]
    assert Lookup().guess(tokens, 2, [5, 6]) == [9, 2]
    assert Lookup().guess(tokens, 2, [5, 7]) == []


def test_prediction_is_looked_through_before_the_text_repeats_anything():
    assert Lookup([7, 1, 2, 3, 8, 9]).guess([50, 1, 2, 3], 2) == [8, 9]


def test_place_with_most_in_common_is_taken_and_of_those_the_latest():
    assert Lookup().guess([9, 1, 2, 3, 40, 0, 1, 2, 3, 41, 9, 1, 2, 3], 1) == [40]
    assert Lookup().guess([0, 1, 2, 3, 40, 0, 1, 2, 3, 41, 0, 1, 2, 3], 1) == [41]


def test_what_speaks_for_a_guess_is_how_much_of_the_text_stood_before():
    text = [4, 1, 2, 3, 5, 6, 7, 8, 9]
    assert [Lookup().expects([*text, *text[1:end]]) for end in (3, 4, 5, 9)] == [0, 3, 4, 8]


@given(ids, ids)
def test_found_as_the_text_grows_is_what_is_found_in_all_of_it_at_once(prediction, tokens):
    growing = Lookup(prediction)
    for end in range(len(tokens)):
        growing.expects(tokens[:end])
    assert growing.guess(tokens, 8) == Lookup(prediction).guess(tokens, 8)
    assert bool(growing.expects(tokens)) == bool(growing.guess(tokens, 1))


@given(ids, ids, st.integers(1, 10))
def test_guesses_stand_in_the_text_behind_what_it_ends_with(prediction, tokens, count):
    found = Lookup(prediction).guess(tokens, count)
    text = [*prediction, *tokens]
    assert len(found) <= count
    if found:
        wanted = [*text[-3:], *found]
        assert any(text[start : start + len(wanted)] == wanted for start in range(len(text)))
