"""What a head knows of who guesses is kept where it belongs: of a model on the route, of a text with its sequence."""

import pytest

from protocol.messages import Generate, Sampled
from protocol.values import Route, Sampling
from strategy.chunking import ChunkCost, ChunkSize
from workers.drafting.guessers import Guesser
from workers.engine.head import Head
from workers.engine.speculation import Speculation

ROUTE = Route(("alone",))
RIGHT, WRONG = 7, 8


class Always:
    """Guesses one token, however much it has to read; a source, and who says of whom it is."""

    def __init__(self, token, *, is_model):
        self._token = token
        self._is_model = is_model

    def of(self, _request):
        return Guesser("some way", self, self._is_model)

    def expects(self, _tokens):
        return True

    def guess(self, _tokens, count, _ahead=()):
        return [self._token] * count


def num_guessed(head, sequence, count):
    """In how many steps of an answer something is guessed; a step takes a second for each of its tokens."""
    request = Generate(
        sequence=sequence, route=ROUTE, cached=True, max_tokens=count, end_tokens=(), sampling=Sampling(), seed=0
    )
    head.begin(request, [5, 6])
    now, steps = 0.0, 0
    while len(head):
        launch = head.next_step(now)
        (row,) = launch.step.rows
        now += launch.step.num_tokens
        steps += row.num_sampled > 1
        guesses = launch.tokens[0, launch.step.num_tokens - row.num_sampled + 1 :].tolist() if row.num_sampled else []
        num_right = next((at for at, token in enumerate(guesses) if token != RIGHT), len(guesses))
        found = ((RIGHT,) * (num_right + 1),) if row.num_sampled else ()
        head.sampled(Sampled(number=launch.step.number, route=ROUTE, tokens=found), now)
    return steps


def head_with(guessers):
    return Head(
        ROUTE,
        chunk_size=ChunkSize(num_stages=ROUTE.num_stages, cost=ChunkCost(fixed_s=0.01, token_s=0.001), fixed_tokens=16),
        max_rows=8,
        prefixes=None,
        speculation=Speculation(guessers, forgets=True),
    )


@pytest.mark.parametrize(("is_model", "usual"), [(True, range(1, 6)), (False, range(12, 21))])
def test_a_model_that_is_wrong_is_known_by_the_next_answers_and_a_text_by_itself(is_model, usual):
    head = head_with(Always(WRONG, is_model=is_model))
    assert num_guessed(head, 1, 60) > 0
    of_others = sum(num_guessed(head, number, 60) for number in range(2, 12))
    assert of_others in usual


class Failing(Always):
    """Comes to nothing when it is asked."""

    def guess(self, _tokens, _count, _ahead=()):
        raise RuntimeError("no memory")


def test_answer_goes_on_without_whoever_fails_to_guess(caplog):
    head = head_with(Failing(RIGHT, is_model=True))
    assert num_guessed(head, 1, 60) == 0
    assert num_guessed(head, 2, 60) == 0
    assert caplog.text.count("an answer goes on without guesses") == 2
