"""The head of a route: what it opens, issues, reports and closes, with nobody computing."""

import pytest

from protocol.messages import (
    CloseSequence,
    Embedded,
    Generate,
    HandOver,
    KeepPrefix,
    OpenSequence,
    PrefillProgress,
    ReadingFailed,
    Reused,
    Sampled,
    SequenceFailed,
    StepOverdue,
    Tokens,
    Update,
)
from protocol.values import Route, Sampling
from strategy.chunking import ChunkCost, ChunkSize
from strategy.prefix import BLOCK_TOKENS, PrefixDirectory
from workers.engine.actions import Forward, Report, Tell
from workers.engine.fitness import UnfitMessage
from workers.engine.generation import HAND_OVER_EVERY_TOKENS, HISTORY_TOKENS, Reading
from workers.engine.head import PROGRESS_FROM_TOKENS, Head

ROUTE = Route(("alpha", "beta"))
END = 2


class Played:
    """A head whose steps the test answers. `forwarded` is to go down the route, `reported` to the coordinator."""

    def __init__(self, *, chunk_tokens=16, max_rows=8, prefixes=None, keeps_answers=False, route=ROUTE, together=False):
        self.forwarded, self.reported, self.told = [], [], []
        self.now = 100.0
        self.head = Head(
            route,
            chunk_size=ChunkSize(
                num_stages=route.num_stages,
                cost=ChunkCost(fixed_s=0.01, token_s=0.001),
                fixed_tokens=chunk_tokens,
                together=together,
            ),
            max_rows=max_rows,
            prefixes=prefixes,
            keeps_answers=keeps_answers,
        )

    def do(self, actions):
        """Note what the head asks for."""
        for action in actions:
            match action:
                case Forward(message=message):
                    self.forwarded.append(message)
                case Report(message=message):
                    self.reported.append(message)
                case Tell(worker=worker, message=message):
                    self.told.append((worker, message))
                case _:
                    raise AssertionError(action)

    def _request(self, sequence, **changes):
        given = {"cached": True, "max_tokens": 1, "end_tokens": (END,), "sampling": Sampling(), "seed": 0}
        return Generate(sequence=sequence, route=self.head.route, **given | changes)

    def begin(self, sequence, prompt, *, max_tokens=5, cached=True, end_tokens=(END,), **sampling):
        request = self._request(
            sequence, cached=cached, max_tokens=max_tokens, end_tokens=end_tokens, sampling=Sampling(**sampling), seed=7
        )
        self.do(self.head.begin(request, list(prompt)))

    def score(self, sequence, prompt):
        """A prompt whose tokens' log probabilities are told."""
        request = self._request(sequence, sampling=Sampling(logprobs=1), scores_prompt=True)
        self.do(self.head.begin(request, list(prompt)))

    def embed(self, sequence, prompt, *, cached=True):
        """A text that becomes a vector."""
        self.do(self.head.begin(self._request(sequence, cached=cached, pooling="mean"), list(prompt)))

    def read(self, sequence, prompt, *, start=0, every=HAND_OVER_EVERY_TOKENS):
        """A prompt that is read for gamma, which has its first tokens."""
        request = self._request(sequence, end_tokens=())
        self.do(self.head.read(request, list(prompt), Reading("gamma", start, every)))

    def spans(self):
        """What was to be handed over, in order."""
        return [(message.start, message.end) for message in self.forwarded if isinstance(message, HandOver)]

    def cancel(self, sequence):
        self.do(self.head.cancel(sequence))

    def nothing_to_run(self):
        return self.head.next_step(self.now) is None

    def issue(self):
        """The next step and its ids; there must be one."""
        launch = self.head.next_step(self.now)
        assert launch is not None
        self.do(self.head.launched(launch.step))
        return launch.step, launch.tokens

    def sampled(self, step, *tokens):
        self.do(
            self.head.sampled(
                Sampled(number=step.number, route=self.head.route, tokens=tuple((token,) for token in tokens)), self.now
            )
        )

    def failed(self, step, message):
        self.do(self.head.failed(step.number, message))

    def answer(self, *tokens):
        """Issue the next step and answer it at once."""
        step, ids = self.issue()
        self.sampled(step, *tokens)
        return step, ids

    def updates(self):
        return [update for message in self.reported if isinstance(message, Tokens) for update in message.updates]


@pytest.fixture
def played():
    return Played()


def test_sequence_is_opened_down_the_route_before_its_first_step(played):
    played.begin(1, range(10, 10 + 3 * HISTORY_TOKENS), temperature=0.5)
    (opened,) = played.forwarded
    assert isinstance(opened, OpenSequence)
    assert (opened.sequence, opened.route, opened.cached, opened.seed) == (1, ROUTE, True, 7)
    assert opened.sampling == Sampling(temperature=0.5)
    assert len(opened.history) == HISTORY_TOKENS
    assert opened.history[-1] == 10 + 3 * HISTORY_TOKENS - 1


def test_prompt_but_its_last_token_is_prefilled_in_chunks_without_sampling(played):
    played.begin(1, range(100, 140))
    chunks = [played.answer() for _ in range(3)]
    assert [ids.tolist() for _, ids in chunks] == [
        [list(range(100, 116))],
        [list(range(116, 132))],
        [list(range(132, 139))],
    ]
    assert [(row.position, row.num_sampled) for step, _ in chunks for row in step.rows] == [
        (0, 0),
        (16, 0),
        (32, 0),
    ]
    step, ids = played.issue()
    assert ids.tolist() == [[139]]
    assert (step.rows[0].position, step.rows[0].num_sampled) == (39, 1)


def test_sampled_token_is_reported_and_fed_to_the_next_step(played):
    played.begin(1, [5])
    played.answer(77)
    assert played.updates() == [Update(1, (77,), None)]
    step, ids = played.issue()
    assert ids.tolist() == [[77]]
    assert step.rows[0].position == 1


def test_uncached_sequence_sends_everything_again_with_each_token(played):
    played.begin(1, [5, 6], cached=False)
    played.answer(77)
    step, ids = played.answer(78)
    assert (ids.tolist(), step.cached) == ([[5, 6, 77]], False)


def test_end_token_closes_the_sequence_and_is_reported_as_stop(played):
    played.begin(1, [5])
    played.answer(END)
    assert played.updates() == [Update(1, (END,), "stop")]
    assert played.forwarded[-1] == CloseSequence(sequence=1, route=ROUTE)
    assert played.nothing_to_run()
    assert len(played.head) == 0


def test_last_token_allowed_closes_the_sequence_as_length(played):
    played.begin(1, [5], max_tokens=2)
    played.answer(70)
    played.answer(71)
    assert [update.finish_reason for update in played.updates()] == [None, "length"]
    assert isinstance(played.forwarded[-1], CloseSequence)


def test_end_token_as_last_token_allowed_counts_as_stop(played):
    played.begin(1, [5], max_tokens=1)
    played.answer(END)
    assert played.updates()[0].finish_reason == "stop"


def test_cancelled_sequence_is_closed_and_the_answer_in_flight_is_dropped(played):
    played.begin(1, [5])
    step, _ = played.issue()
    played.cancel(1)
    assert played.forwarded[-1] == CloseSequence(sequence=1, route=ROUTE)
    played.sampled(step, 77)
    assert played.reported == []
    assert played.nothing_to_run()


def test_cancel_of_an_unknown_or_ended_sequence_does_nothing(played):
    played.begin(1, [5])
    played.answer(END)
    count = len(played.forwarded)
    played.cancel(1)
    played.cancel(99)
    assert len(played.forwarded) == count


def test_cancel_in_the_middle_of_a_prefill_issues_no_further_chunk(played):
    played.begin(1, range(100))
    step, _ = played.issue()
    played.cancel(1)
    assert played.nothing_to_run()
    played.sampled(step)
    assert played.reported == []


def test_failed_step_fails_each_of_its_rows_and_no_other_sequence(played):
    for sequence in range(1, 5):  # two slots of two
        played.begin(sequence, [5])
    failing, _ = played.issue()
    going_on, _ = played.issue()
    played.failed(failing, "beta: no memory")
    failed = [message for message in played.reported if isinstance(message, SequenceFailed)]
    assert [message.sequence for message in failed] == [row.sequence for row in failing.rows]
    assert {message.message for message in failed} == {"beta: no memory"}
    played.sampled(going_on, 70, 71)
    assert [update.sequence for update in played.updates()] == [row.sequence for row in going_on.rows]
    assert len(played.head) == 2


def read_together(*prompts, **options):
    """A head with these prompts, and the first step, which reads them all."""
    played = Played(route=Route(("alpha",)), together=True, chunk_tokens=400, **options)
    for sequence, prompt in enumerate(prompts, 1):
        played.begin(sequence, prompt)
    step, ids = played.issue()
    assert [row.sequence for row in step.rows] == list(range(1, len(prompts) + 1))
    return played, step, ids


def test_prompts_that_are_read_together_are_filled_up_behind_their_ends():
    played, step, ids = read_together(range(100, 106), range(200, 209), range(300, 305))
    assert [(row.position, step.end_of(row), row.padding) for row in step.rows] == [(0, 5, 3), (0, 8, 0), (0, 4, 4)]
    assert ids.tolist() == [[*range(100, 105), 104, 104, 104], [*range(200, 208)], [*range(300, 304), *[303] * 4]]
    assert step.size == 24
    played.sampled(step)
    _, ids = played.issue()
    assert ids.tolist() == [[105], [208], [304]]


def test_of_prompts_that_are_read_together_each_is_kept_to_its_own_end():
    prefixes = PrefixDirectory(capacity=100, snapshots=False)
    prompts = [range(start, start + 2 * BLOCK_TOKENS + start // 100) for start in (100, 900)]
    played, _, _ = read_together(*prompts, prefixes=prefixes)
    spans = [message.spans for message in played.forwarded if isinstance(message, KeepPrefix)]
    assert spans == [((0, BLOCK_TOKENS), (BLOCK_TOKENS, 2 * BLOCK_TOKENS))] * 2


def test_prompts_whose_common_step_failed_begin_anew_each_alone_and_one_that_fails_again_fails_alone():
    played, step, _ = read_together([5, 6, 7], [5, 8, 9, 10], [5, 6])
    played.forwarded.clear()
    played.failed(step, "alpha: no memory")
    opened = [message.sequence for message in played.forwarded if isinstance(message, OpenSequence)]
    assert len(opened) == len(played.head) == 3
    steps = [played.issue()[0] for _ in range(2)]
    assert [len(each.rows) for each in steps] == [1, 1]
    played.failed(steps[0], "alpha: no memory")
    failed = [message.sequence for message in played.reported if isinstance(message, SequenceFailed)]
    assert failed == [1]
    assert len(played.head) == 2


def test_prompt_whose_log_probabilities_are_told_is_read_alone():
    played = Played(route=Route(("alpha",)), together=True)
    for sequence in (1, 2):
        played.score(sequence, [5, 6, 7])
    step, _ = played.issue()
    assert len(step.rows) == 1


@pytest.mark.parametrize(
    ("route", "is_ahead"), [(Route(("a", "b"), ranks=2), True), (Route(("a", "b", "c", "d"), ranks=2), False)]
)
def test_group_of_one_stage_runs_ahead_of_its_ids_and_stages_do_not(route, is_ahead):
    played = Played(route=route)
    played.begin(1, [5])
    assert played.issue()[1].tolist() == [[5]]
    if is_ahead:
        step, ids = played.issue()
        assert ids is None
        assert [(row.sequence, row.position, row.num_sampled) for row in step.rows] == [(1, 1, 1)]
    assert played.nothing_to_run()


def test_progress_of_a_long_prompt_only_is_reported():
    for length, expected in [(PROGRESS_FROM_TOKENS, 0), (PROGRESS_FROM_TOKENS + 1, 2)]:
        played = Played(chunk_tokens=PROGRESS_FROM_TOKENS - 1)
        played.begin(1, range(length))
        while (step := played.issue()[0]).slot is None:
            played.sampled(step)
        progress = [message for message in played.reported if isinstance(message, PrefillProgress)]
        assert len(progress) == expected
        if expected:
            assert (progress[-1].processed, progress[-1].total) == (length - 1, length)


def test_several_rows_of_a_step_are_reported_in_one_message(played):
    for sequence in range(1, 5):
        played.begin(sequence, [5])
    step, _ = played.issue()
    played.sampled(step, 70, 71)
    assert len(played.reported) == 1
    assert [update.tokens for update in played.updates()] == [(70,), (71,)]


def test_step_is_overdue_after_ten_times_the_usual_and_told_once(played):
    played.begin(1, [5], max_tokens=50)
    for _ in range(30):
        step, _ = played.issue()
        played.now += 2.0
        played.sampled(step, 70)
    step, _ = played.issue()
    played.now += 19.9
    assert played.head.overdue(played.now) == []
    played.now += 0.2
    played.do(played.head.overdue(played.now))
    (overdue,) = [message for message in played.reported if isinstance(message, StepOverdue)]
    assert (overdue.worker, overdue.route, overdue.number) == ("alpha", ROUTE, step.number)
    assert overdue.seconds == pytest.approx(20.1)
    assert played.head.overdue(played.now + 100) == []


def test_step_has_the_time_of_those_in_front_of_it_too(played):
    """A decode step that waits behind a chunk on a later stage is as late as the chunk."""
    played.begin(1, [5])
    played.begin(2, range(100))
    played.issue()
    played.issue()
    played.now += 100.0
    late = played.head.overdue(played.now)
    assert len(late) == 2
    slow = Played()
    for _ in range(30):
        slow.begin(1, range(3), max_tokens=1)
        chunk, _ = slow.issue()
        slow.now += 4.0
        slow.sampled(chunk)
        slow.answer(70)
    slow.begin(2, range(40), max_tokens=1)
    slow.begin(3, [5], max_tokens=1)
    for _ in range(3):
        slow.issue()
    slow.now += 20.0
    assert slow.head.overdue(slow.now) == []


def test_step_of_an_unknown_number_changes_nothing(played):
    played.begin(1, [5])
    played.issue()
    with pytest.raises(UnfitMessage):
        played.head.sampled(Sampled(number=99, route=ROUTE, tokens=((1,),)), played.now)
    with pytest.raises(UnfitMessage):
        played.head.failed(99, "?")
    assert played.head.num_in_flight == 1


@pytest.mark.parametrize("tokens", [(), (1, 2)])
def test_step_that_sampled_too_few_or_too_many_fails_its_rows(played, tokens):
    played.begin(1, [5])
    step, _ = played.issue()
    played.sampled(step, *tokens)
    (failed,) = played.reported
    assert isinstance(failed, SequenceFailed)
    assert played.nothing_to_run()


def test_number_in_use_does_not_fit(played):
    played.begin(1, [5])
    with pytest.raises(UnfitMessage):
        played.begin(1, [6])
    assert len(played.head) == 1


def test_abandoned_sequences_leave_what_they_had_computed_without_a_report():
    prefixes = PrefixDirectory(capacity=10, snapshots=False)
    played = Played(chunk_tokens=BLOCK_TOKENS, prefixes=prefixes, route=Route(("alpha",)))
    played.begin(1, range(3 * BLOCK_TOKENS))
    for _ in range(2):
        played.answer()
    played.begin(2, [5], cached=False)
    played.forwarded.clear()
    played.do(played.head.abandon())
    assert [type(message) for message in played.forwarded] == [KeepPrefix, CloseSequence, CloseSequence]
    assert played.forwarded[0].spans == ((0, BLOCK_TOKENS), (BLOCK_TOKENS, 2 * BLOCK_TOKENS))
    assert played.reported == []
    assert len(played.head) == 0


def test_ids_that_the_step_before_samples_are_not_sent():
    played = Played(route=Route(("alpha",)))
    played.begin(1, [5])
    _, known = played.issue()
    step, unknown = played.issue()
    assert (known.tolist(), unknown) == ([[5]], None)
    assert step.rows[0].position == 1


@pytest.mark.parametrize(("snapshots", "keeps_answers"), [(False, True), (True, True), (False, False)])
def test_block_of_an_answer_is_kept_once_its_last_token_is_on_its_way_where_there_are_copies(snapshots, keeps_answers):
    prefixes = PrefixDirectory(capacity=10, snapshots=snapshots)
    played = Played(chunk_tokens=BLOCK_TOKENS, prefixes=prefixes, keeps_answers=keeps_answers)
    played.begin(1, [5] * (BLOCK_TOKENS - 1), max_tokens=BLOCK_TOKENS)
    played.answer()  # the prompt but its last token
    played.answer(3)
    played.forwarded.clear()
    step, _ = played.issue()
    assert step.rows[0].position == BLOCK_TOKENS - 1
    kept = [message.spans for message in played.forwarded if isinstance(message, KeepPrefix)]
    assert kept == ([((0, BLOCK_TOKENS),)] if keeps_answers and not snapshots else [])


# --- prompts that are only read


@pytest.mark.parametrize(
    ("chunk", "every", "start", "spans"),
    [
        (100, 256, 0, [(0, 300), (300, 599)]),
        (100, 256, 250, [(250, 599)]),
        (512, 256, 0, [(0, 512), (512, 599)]),
        (100, None, 0, [(0, 599)]),
        (100, None, 70, [(70, 599)]),
    ],
)
def test_prompt_that_is_only_read_is_handed_over_behind_its_chunks_and_closed(chunk, every, start, spans):
    played = Played(chunk_tokens=chunk)
    played.read(9, range(5, 605), start=start, every=every)
    while len(played.head):
        played.answer()
    assert played.spans() == spans
    assert {message.request for message in played.forwarded if isinstance(message, HandOver)} == {9}
    assert isinstance(played.forwarded[-1], CloseSequence)
    assert played.reported[-1] == PrefillProgress(sequence=9, processed=599, total=600)
    assert played.nothing_to_run()


def test_prompt_that_fails_while_it_is_read_is_told_to_whom_it_is_for_and_no_one_else():
    played = Played()
    played.read(9, range(5, 605))
    step, _ = played.issue()
    played.failed(step, "beta: no memory")
    assert played.told == [("gamma", ReadingFailed(sequence=9, message="beta: no memory"))]
    assert not [message for message in played.reported if not isinstance(message, Reused)]
    assert isinstance(played.forwarded[-1], CloseSequence)
    assert played.nothing_to_run()


# --- texts that become vectors


@pytest.mark.parametrize(("cached", "num_steps"), [(True, 3), (False, 1)])
def test_text_is_read_to_its_last_token_and_its_vector_ends_it(played, cached, num_steps):
    played.embed(7, range(100, 140), cached=cached)
    (opened,) = played.forwarded
    assert (opened.pooling, opened.max_length) == ("mean", 40)
    steps = [played.issue() for _ in range(num_steps)]
    assert [token for _, ids in steps for token in ids[0].tolist()] == list(range(100, 140))
    assert not any(row.num_sampled for step, _ in steps for row in step.rows)
    assert played.nothing_to_run()
    played.do(played.head.pooled(1, b"vector"))
    assert played.reported == [Embedded(sequence=7)]
    assert played.forwarded[1:] == [CloseSequence(sequence=1, route=ROUTE)]
    for step, _ in steps:
        played.sampled(step)
    assert (len(played.head), played.head.num_in_flight) == (0, 0)
    assert played.reported == [Embedded(sequence=7)]


def test_text_is_not_looked_up_and_not_kept():
    played = Played(prefixes=PrefixDirectory(capacity=8, snapshots=False))
    prompt = range(100, 100 + 3 * BLOCK_TOKENS)
    for sequence in (1, 2):
        played.embed(sequence, prompt)
        for _ in range(len(prompt) // 16 - 1):
            played.answer()
        step, _ = played.issue()
        played.do(played.head.pooled(sequence, b"vector"))
        played.sampled(step)
    assert not [message for message in played.forwarded if isinstance(message, KeepPrefix)]
    assert not [message for message in played.reported if isinstance(message, Reused)]


def test_text_whose_last_step_comes_back_without_its_vector_fails(played):
    played.embed(7, [1, 2, 3])
    played.answer()
    assert played.reported == [SequenceFailed(sequence=7, message="beta gave no vector of it")]
    assert len(played.head) == 0


def test_vector_of_a_text_whose_client_left_is_nobody_s(played):
    played.embed(7, [1, 2, 3])
    step, _ = played.issue()
    played.cancel(7)
    played.do(played.head.pooled(1, b"vector"))
    played.sampled(step)
    assert played.reported == []


def test_vector_of_an_answer_is_refused(played):
    played.begin(1, [1, 2, 3])
    with pytest.raises(UnfitMessage, match="no vector"):
        played.head.pooled(1, b"vector")
