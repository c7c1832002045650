"""The caches of one worker: merged into slots, taken apart again, and gone when their sequences are."""

import numpy as np
import pytest

from protocol.messages import KeepPrefix, OpenSequence, Row, Step
from protocol.values import Route, Sampling
from workers.cache.prefix_store import PrefixStore
from workers.engine.executor import StageExecutor, StagePlace
from workers.engine.fitness import UnfitMessage
from workers.model.split_model import SplitModel
from workers.zoo import make_tiny_model

ROUTE = Route(("alpha",))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return SplitModel.load(make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama"))


class Played:
    """An executor of the whole model, and what each sequence has seen so far."""

    def __init__(self, model):
        layers = (0, model.num_layers)
        prefixes = PrefixStore(model, layers, memory_bytes=1 << 20, disk=None)
        stage = StagePlace(layers, is_last=True)
        self.executor = StageExecutor(model, stage, last_position_only=True, prefixes=prefixes)
        self.tokens = {}
        self._number = 0

    def open(self, sequence, prompt, *, cached=True, read=None):
        """Open a sequence and prefill all of its prompt but the last token, or its first `read` tokens."""
        self.executor.open(
            OpenSequence(
                sequence=sequence,
                route=ROUTE,
                cached=cached,
                sampling=Sampling(),
                seed=0,
                history=tuple(prompt),
                max_length=len(prompt) + 50,
            ),
            (),
        )
        self.tokens[sequence] = list(prompt)
        count = len(prompt) - 1 if read is None else read
        if cached and count:
            self._run(None, [Row(sequence, 0, num_sampled=0)], [prompt[:count]])

    def read(self, *sequences, but=0):
        """Prompts of open sequences in one step, but for their last token; `but` the first so many tokens, which were read."""
        ends = [len(self.tokens[sequence]) - 1 for sequence in sequences]
        longest = max(ends) - but
        ids = [
            (self.tokens[sequence][but:end] + [7] * longest)[:longest]
            for sequence, end in zip(sequences, ends, strict=True)
        ]
        rows = [
            Row(sequence, but, num_sampled=0, padding=longest + but - end)
            for sequence, end in zip(sequences, ends, strict=True)
        ]
        self._run(None, rows, ids)

    def decode(self, slot, *sequences):
        """One token more for each of `sequences`, as one batch."""
        rows = [Row(sequence, len(self.tokens[sequence]) - 1, num_sampled=1) for sequence in sequences]
        found = self._run(slot, rows, [self.tokens[sequence][-1:] for sequence in sequences])
        for sequence, tokens in zip(sequences, found.tokens, strict=True):
            self.tokens[sequence] += tokens

    def _run(self, slot, rows, ids):
        self._number += 1
        step = Step(number=self._number, route=ROUTE, slot=slot, cached=True, rows=tuple(rows), num_tokens=len(ids[0]))
        return self.executor.finish(self.executor.launch(step, np.array(ids, np.int32), None))


PROMPTS = {sequence: list(range(30 * sequence, 30 * sequence + 3 * sequence)) for sequence in (1, 2, 3, 4)}


@pytest.fixture
def played(model):
    played = Played(model)
    for sequence, prompt in PROMPTS.items():
        played.open(sequence, prompt)
    return played


@pytest.fixture(scope="module")
def expected(model):
    """Eight tokens of each sequence alone."""
    alone = {}
    for sequence, prompt in PROMPTS.items():
        played = Played(model)
        played.open(sequence, prompt)
        for _ in range(8):
            played.decode(0, sequence)
        alone[sequence] = played.tokens[sequence]
    return alone


def assert_as_alone(played, expected):
    for sequence, tokens in played.tokens.items():
        assert tokens == expected[sequence][: len(tokens)], sequence


@pytest.fixture
def unread(model):
    played = Played(model)
    for sequence, prompt in PROMPTS.items():
        played.open(sequence, prompt, read=0)
    return played


def test_prompts_that_are_read_together_get_what_they_would_get_alone(unread, expected):
    unread.read(1, 2, 3, 4)
    for _ in range(8):
        unread.decode(0, 1, 2, 3, 4)
    assert_as_alone(unread, expected)


def test_prompts_that_were_read_together_go_on_in_any_company(unread, expected):
    unread.read(1, 2, 3)
    unread.decode(0, 2)
    unread.decode(1, 3, 1)
    unread.decode(0, 2, 3)
    assert_as_alone(unread, expected)


def test_rests_of_prompts_are_read_together_behind_what_was_read_before(model, expected):
    played = Played(model)
    for sequence, prompt in PROMPTS.items():
        played.open(sequence, prompt, read=2 if sequence > 1 else None)
    played.decode(0, 1)
    played.read(2, 3, 4, but=2)
    played.decode(0, 1, 2, 3, 4)
    played.decode(0, 1, 2, 3, 4)
    assert_as_alone(played, expected)


def test_one_of_the_prompts_that_were_read_together_ends_before_any_goes_on(unread, expected):
    unread.read(1, 2, 3, 4)
    before = unread.executor.kv_bytes
    unread.executor.close(2)
    del unread.tokens[2]
    unread.decode(0, 1, 3)
    unread.decode(0, 1, 3, 4)
    assert_as_alone(unread, expected)
    for sequence in (1, 3, 4):
        unread.executor.close(sequence)
    assert before > unread.executor.kv_bytes == 0


def test_what_prompts_have_that_are_read_together_is_kept_of_each(unread, model, expected):
    unread.read(1, 2, 3, 4)
    key = b"k" * 16
    unread.executor.keep(KeepPrefix(sequence=3, route=ROUTE, spans=((0, 4),)), (key,))
    unread.executor.close(3)
    prompt = PROMPTS[3]
    unread.executor.open(
        OpenSequence(
            sequence=33,
            route=ROUTE,
            cached=True,
            sampling=Sampling(),
            seed=0,
            history=tuple(prompt),
            max_length=60,
            computed_tokens=4,
        ),
        (key,),
    )
    unread.tokens = {33: list(prompt)}
    unread.read(33, but=4)
    unread.decode(0, 33)
    assert unread.tokens[33] == expected[3][: len(prompt) + 1]


def test_rows_of_a_batch_get_what_they_would_get_alone(played, expected):
    for _ in range(8):
        played.decode(0, 1, 2, 3, 4)
    assert_as_alone(played, expected)


def test_sequence_that_joins_a_running_batch_gets_what_it_would_get_alone(played, expected):
    played.decode(0, 1, 2)
    played.decode(0, 1, 2, 3)
    played.decode(0, 1, 2, 3, 4)
    assert_as_alone(played, expected)


def test_sequence_that_moves_to_another_slot_takes_its_cache_along(played, expected):
    played.decode(0, 1, 2, 3)
    played.decode(1, 4)
    played.decode(0, 1, 2)
    played.decode(1, 4, 3)
    played.decode(0, 1, 2)
    played.decode(1, 4, 3)
    assert_as_alone(played, expected)


def test_sequence_may_move_before_its_old_slot_runs_again(played, expected):
    played.decode(0, 1, 2, 3)
    played.decode(1, 4)
    played.decode(1, 4, 3)
    played.decode(0, 1, 2)
    assert_as_alone(played, expected)


def test_rows_that_ended_leave_the_batch(played, expected):
    played.decode(0, 1, 2, 3, 4)
    played.executor.close(2)
    played.executor.close(3)
    played.decode(0, 1, 4)
    assert_as_alone(played, expected)


def test_caches_are_gone_with_their_sequences(played):
    played.decode(0, 1, 2)
    played.decode(1, 3, 4)
    assert played.executor.kv_bytes > 0
    for sequence in PROMPTS:
        played.executor.close(sequence)
    assert (len(played.executor), played.executor.kv_bytes) == (0, 0)


def test_cache_of_ended_rows_is_gone_also_when_another_moved_out_of_their_slot(played):
    played.decode(0, 1, 2, 3)
    played.decode(1, 4)
    played.executor.close(1)
    played.executor.close(2)
    played.decode(1, 4, 3)
    for sequence in (3, 4):
        played.executor.close(sequence)
    assert played.executor.kv_bytes == 0


def test_slot_is_as_good_as_new_after_all_of_its_sequences_ended(played, expected):
    played.decode(0, 1, 2)
    played.executor.close(1)
    played.executor.close(2)
    played.decode(0, 3, 4)
    played.decode(0, 3, 4)
    assert_as_alone(played, expected)


def test_closing_twice_or_an_unknown_sequence_is_harmless(played):
    played.executor.close(1)
    played.executor.close(1)
    played.executor.close(99)


def test_step_of_a_sequence_that_is_not_open_is_refused(played):
    played.executor.close(1)
    with pytest.raises(UnfitMessage, match="sequence 1"):
        played.decode(0, 1, 2)


def test_refused_step_leaves_the_other_sequences_usable(played, expected):
    played.decode(0, 2, 3)
    with pytest.raises(UnfitMessage):
        played._run(0, [Row(2, 7, num_sampled=1), Row(99, 0, num_sampled=1)], [[1], [1]])
    played.decode(0, 2, 3)
    assert_as_alone(played, expected)


def test_uncached_sequence_keeps_no_cache(model):
    played = Played(model)
    played.open(1, PROMPTS[4], cached=False)
    assert played.executor.kv_bytes == 0


def test_sequence_that_left_a_batch_and_came_back_behind_another_goes_on(model):
    together, alone = Played(model), Played(model)
    for played in (together, alone):
        for sequence in (1, 2, 3):
            played.open(sequence, PROMPTS[sequence])
    together.decode(0, 1, 2)
    together.decode(0, 1, 3, 2)
    for sequence in (1, 2, 3):
        for _ in range(len(together.tokens[sequence]) - len(PROMPTS[sequence])):
            alone.decode(sequence, sequence)
    assert together.tokens == alone.tokens
