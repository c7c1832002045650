"""A head that guesses on while stages verify: what it sends, what it makes of the answers, and that its tokens are those of the last stage."""

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import CloseSequence, Generate, KeepPrefix, Sampled, SequenceFailed, Tokens
from protocol.values import Route, Sampling
from strategy.chunking import ChunkCost, ChunkSize
from strategy.drafting import DraftLength
from strategy.prefix import BLOCK_TOKENS, PrefixDirectory
from workers.drafting.guessers import Guesser
from workers.engine.actions import Forward, Report
from workers.engine.head import Head
from workers.engine.speculation import Speculation

ROUTE = Route(("alpha", "beta"))
END = 2


class Told:
    """Guesses the ids of a text, but for those at some places, and none behind one place; a source, and who says of whom it is."""

    def __init__(self, text, wrong_at=(), unsure_at=None):
        self._text = [token + 1000 * (place in wrong_at) for place, token in enumerate(text)]
        self._unsure_at = unsure_at

    def of(self, _request):
        return Guesser("told", self, is_model=True)

    def expects(self, _tokens):
        return True

    def guess(self, tokens, count, ahead=()):
        start = len(tokens) + len(ahead)
        end = start + count
        return self._text[start : end if self._unsure_at not in range(start, end) else self._unsure_at]


class Played:
    """A head beside a last stage that samples the ids of `text` and finds out itself what is stale."""

    def __init__(
        self, text, wrong_at=(), *, unsure_at=None, route=ROUTE, forgets=True, prefixes=None, keeps_answers=False
    ):
        self.text = list(text)
        self.tokens, self.kept, self.finish_reasons, self.failures = [], [], [], []
        self.proposed = self.accepted = self.num_stale = 0
        self.in_flight = deque()
        self.now = 0.0
        self._num_known = None
        self.head = Head(
            route,
            chunk_size=ChunkSize(
                num_stages=route.num_stages, cost=ChunkCost(fixed_s=0.01, token_s=0.001), fixed_tokens=16
            ),
            max_rows=8,
            prefixes=prefixes,
            keeps_answers=keeps_answers,
            speculation=Speculation(Told(text, wrong_at, unsure_at), forgets=forgets, has_stages=not route.is_single),
        )

    def begin(self, num_prompt=2, max_tokens=40):
        request = Generate(
            sequence=1,
            route=self.head.route,
            cached=True,
            max_tokens=max_tokens,
            end_tokens=(END,),
            sampling=Sampling(),
            seed=0,
        )
        self._do(self.head.begin(request, self.text[:num_prompt]))

    def issue(self):
        """Every step that is to be issued now; returns how many are in flight."""
        while launch := self.head.next_step(self.now):
            self.in_flight.append((launch.step, launch.tokens[0].tolist()))
            self._do(self.head.launched(launch.step))
        return len(self.in_flight)

    def answer(self):
        """The oldest step that is in flight."""
        step, ids = self.in_flight.popleft()
        self.now += 1.0
        found = (self._sampled(step.rows[0], ids),) if step.rows[0].num_sampled else ()
        self._do(self.head.sampled(Sampled(number=step.number, route=self.head.route, tokens=found), self.now))

    def run(self):
        while self.issue():
            self.answer()
        return self.tokens

    def _sampled(self, row, ids):
        place = row.position + len(ids) - row.num_sampled
        if self._num_known not in (None, place + 1) or ids[-row.num_sampled] != self.text[place]:
            self.num_stale += 1
            return ()
        guesses, said = ids[len(ids) - row.num_sampled + 1 :], self.text[place + 1 : place + 1 + row.num_sampled]
        num_right = next((at for at, guess in enumerate(guesses) if guess != said[at]), len(guesses))
        self._num_known = place + 2 + num_right
        return tuple(said[: num_right + 1])

    def _do(self, actions):
        for action in actions:
            match action:
                case Report(message=Tokens(updates=(update,))):
                    self.tokens += update.tokens
                    self.proposed += update.proposed
                    self.accepted += update.accepted
                    self.finish_reasons.append(update.finish_reason)
                case Report(message=SequenceFailed(message=message)):
                    self.failures.append(message)
                case Forward(message=KeepPrefix(spans=spans)):
                    self.kept += spans
                case Forward():
                    pass
                case _:
                    raise AssertionError(action)


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """Four tokens a step, one step behind the other."""
    monkeypatch.setattr(DraftLength, "best", lambda _self, _known, due, most, *_: min(4 - due, most))
    monkeypatch.setattr(DraftLength, "further", lambda _self, _known, most: min(4, most))


def text_of(length=60, seed=0):
    rng = random.Random(seed)
    return [rng.randrange(10, 100) for _ in range(length)]


def begun(**settings):
    """A head that has its first token, and then as many steps in flight as there are stages."""
    played = Played(text_of(), **settings)
    played.begin()
    for _ in range(2):
        played.issue()
        played.answer()
    played.issue()
    return played


def test_guesses_behind_guesses_are_sent_while_those_are_verified():
    played = begun()
    assert [(step.rows[0].position, step.rows[0].num_sampled, ids) for step, ids in played.in_flight] == [
        (2, 4, played.text[2:6]),
        (6, 4, played.text[6:10]),
    ]


def test_what_was_sent_behind_a_wrong_guess_is_of_no_use_and_the_next_step_begins_behind_what_came():
    played = begun(wrong_at=(4,))
    played.answer()
    assert played.tokens == played.text[2:5]
    assert played.issue() == 2
    assert [step.rows[0].position for step, _ in played.in_flight] == [6, 4]
    played.answer()
    assert (played.num_stale, played.tokens) == (1, played.text[2:5])
    assert played.run() == played.text[2:42]


def test_first_token_of_what_goes_on_may_be_what_was_wrong():
    played = begun(wrong_at=(6,))
    played.answer()
    played.issue()
    assert [step.rows[0].position for step, _ in played.in_flight] == [6, 6]
    assert played.run() == played.text[2:42]
    assert played.num_stale == 1


def test_only_what_was_verified_is_told_counted_and_kept():
    played = begun(wrong_at=(9,), prefixes=PrefixDirectory(capacity=64, snapshots=False), keeps_answers=True)
    played.answer()
    assert (played.tokens, played.proposed, played.accepted) == (played.text[2:7], 4, 4)
    played.issue()
    played.answer()
    assert (played.tokens, played.proposed, played.accepted) == (played.text[2:10], 4 + 7, 4 + 2)
    played._do(played.head.cancel(1))
    assert all(end <= 2 + len(played.tokens) for _, end in played.kept)


def test_answer_is_kept_block_by_block_as_far_as_it_was_verified():
    played = Played(
        text_of(4 * BLOCK_TOKENS), prefixes=PrefixDirectory(capacity=64, snapshots=False), keeps_answers=True
    )
    played.begin(max_tokens=3 * BLOCK_TOKENS)
    while played.issue():
        assert all(end <= 2 + len(played.tokens) for _, end in played.kept)
        played.answer()
    assert played.kept[0] == (0, BLOCK_TOKENS)


@pytest.mark.parametrize("max_tokens", [2, 3, 5, 6, 9, 10])
def test_nothing_goes_on_beyond_the_most_tokens(max_tokens):
    played = Played(text_of())
    played.begin(max_tokens=max_tokens)
    while played.issue():
        assert all(step.rows[0].position + len(ids) < 2 + max_tokens for step, ids in played.in_flight)
        played.answer()
    assert (played.tokens, played.finish_reasons[-1]) == (played.text[2 : 2 + max_tokens], "length")


def test_nothing_goes_on_behind_a_guess_that_ends_the_answer():
    played = Played([*text_of(9), END, *text_of()])
    played.begin()
    assert played.run() == played.text[2:10]
    assert played.finish_reasons[-1] == "stop"
    assert not played.in_flight


@pytest.mark.parametrize("unsure_at", [5, 6, 7, 8, 10])
def test_nothing_goes_on_behind_guesses_that_ended_early(unsure_at):
    played = begun(unsure_at=unsure_at)
    assert played.in_flight[-1][0].rows[0].position + len(played.in_flight[-1][1]) <= unsure_at
    assert len(played.in_flight) == (2 if unsure_at > 7 else 1)
    assert played.run() == played.text[2:42]


def test_request_that_leaves_leaves_steps_that_run_out():
    played = begun(wrong_at=(4,))
    played.answer()
    played.issue()
    assert played.head.cancel(1)[-1].message == CloseSequence(sequence=1, route=ROUTE)
    so_far = list(played.tokens)
    assert played.run() == so_far
    assert played.head.num_in_flight == 0


@pytest.mark.parametrize("answered", [(), (55,)])
def test_last_stage_that_thinks_otherwise_of_what_counts_fails_the_sequence(answered):
    played = begun(wrong_at=(4,) if answered else ())
    if answered:
        played.answer()  # the next one is stale
    step, _ = played.in_flight.popleft()
    played._do(played.head.sampled(Sampled(number=step.number, route=ROUTE, tokens=(answered,)), 9.0))
    assert "sampled" in played.failures[0]
    assert len(played.head) == 0


def test_nothing_goes_on_where_caches_cannot_forget():
    played = Played(text_of(), wrong_at=(7, 19), forgets=False)
    played.begin()
    steps = []
    while played.issue():
        steps.append(len(played.in_flight))
        played.answer()
    assert played.tokens == played.text[2:42]
    assert max(steps[1:]) == 1


@given(
    st.sets(st.integers(3, 45)),
    st.integers(2, 4),
    st.integers(1, 44),
    st.lists(st.booleans(), min_size=80, max_size=80),
)
def test_tokens_are_those_of_the_last_stage_whatever_is_guessed_and_when_it_answers(
    wrong_at, num_stages, max_tokens, waits
):
    played = Played(text_of(), wrong_at, route=Route(("alpha", "beta", "gamma", "delta")[:num_stages]))
    played.begin(max_tokens=max_tokens)
    for is_late in waits:
        if not is_late:
            played.issue()
        if played.in_flight:
            played.answer()
    assert played.run() == played.text[2 : 2 + max_tokens]
    assert played.proposed >= played.accepted
    assert not played.failures
    assert (len(played.head), played.head.num_in_flight) == (0, 0)
