"""How fast a group runs its steps: of ranks that have to take the same ones, however long these take."""

import pytest

from protocol.values import Route
from strategy.chunking import ChunkCost
from strategy.stage_speed import StageSpeed
from workers.model.group_timing import GroupTimer

ALONE = StageSpeed(
    decode=((1, 1.0),), decode_context_s=4e-6, chunk=ChunkCost(1.0, 1.0), chunk_context_s=2e-7, payload_bytes=9
)
CHUNK = ChunkCost(0.002, 0.0001)


class Ranks:
    """An executor whose steps take what they take, in time that it alone lets pass. unlike: by how much longer a step takes than the next."""

    def __init__(self, unlike=0.0):
        self.seconds = 0.0
        self.open_sequences = set()
        self.steps = []
        self._unlike = unlike

    def open(self, message, keys):
        assert message.cached
        self.open_sequences.add(message.sequence)

    def close(self, sequence):
        self.open_sequences.remove(sequence)

    def launch(self, step, tokens, received):
        assert tokens.shape == (len(step.rows), step.num_tokens) == received
        assert {row.sequence for row in step.rows} <= self.open_sequences
        self.steps.append((step.slot, len(step.rows), step.num_tokens))
        return step

    def finish(self, step):
        self.seconds += seconds_of(len(step.rows), step.num_tokens) * (1 + self._unlike * (len(self.steps) % 2))


def seconds_of(rows, tokens):
    if tokens > 1:
        return CHUNK.fixed_s + tokens * CHUNK.token_s + tokens**2 / 2 * ALONE.chunk_context_s / 2
    return 0.001 if rows == 1 else 0.003 + rows * 0.0002


def timed(ranks, *, most_tokens=2048, **options):
    timer = GroupTimer(
        Route(("a", "b"), ranks=2),
        ranks,
        lambda tokens: tokens.shape,
        vocabulary_size=100,
        most_tokens=most_tokens,
        now=lambda: ranks.seconds,
        **options,
    )
    return timer.speed(ALONE, 0.5)


def test_one_row_is_not_taken_for_the_beginning_of_a_line_through_more():
    found = timed(Ranks(), batches=True)
    for rows in range(1, 13):
        if rows != 3:  # no such step was taken
            assert found.decode_s(rows, 0) == pytest.approx(seconds_of(rows, 1))


def test_chunks_are_what_they_take_without_what_their_tokens_take_for_each_other():
    found = timed(Ranks(), batches=False)
    assert (found.chunk.fixed_s, found.chunk.token_s) == pytest.approx((CHUNK.fixed_s, CHUNK.token_s))
    assert (found.chunk_context_s, found.decode_context_s) == (ALONE.chunk_context_s / 2, ALONE.decode_context_s / 2)
    assert [rows for rows, _ in found.decode] == [1]
    assert found.payload_bytes == 0


@pytest.mark.parametrize("batches", [True, False])
def test_ranks_take_the_same_steps_however_long_these_take(batches):
    usual, slow = Ranks(), Ranks(unlike=50.0)
    timed(usual, batches=batches)
    timed(slow, batches=batches)
    assert usual.steps == slow.steps
    assert not usual.open_sequences


def test_no_chunk_is_longer_than_the_model_has_places_for():
    ranks = Ranks()
    timed(ranks, batches=True, most_tokens=128)
    assert max(tokens for _, _, tokens in ranks.steps) == 64
