"""The head's policy, rule by rule, and its invariants under random loads."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from strategy.scheduling import Schedule
from strategy.step_plan import RowPlan, StepPlan
from tests.support.fixed_chunks import FixedChunks


def schedule(num_stages=2, chunk_tokens=4, max_rows=8, room=0) -> Schedule:
    return Schedule(num_stages=num_stages, chunks=FixedChunks(chunk_tokens, room), max_rows=max_rows)


def issue_all(plan: Schedule) -> list[StepPlan]:
    steps = []
    while step := plan.next():
        steps.append(step)
    return steps


def test_prompt_is_prefilled_in_chunks_and_its_last_token_is_the_first_decode():
    plan = schedule(num_stages=4)
    plan.add(1, prompt_tokens=10, cached=True)
    rows = [step.rows[0] for step in issue_all(plan)]
    assert rows == [
        RowPlan(1, 0, 4, num_sampled=0),
        RowPlan(1, 4, 4, num_sampled=0),
        RowPlan(1, 8, 1, num_sampled=0),
        RowPlan(1, 9, 1, num_sampled=1),
    ]


def test_decode_waits_for_its_token_but_chunks_do_not_wait_for_each_other():
    plan = schedule(num_stages=1)
    plan.add(1, prompt_tokens=1, cached=True)
    step = plan.next()
    assert plan.next() is None
    plan.done(step)
    assert plan.next().rows == (RowPlan(1, 1, 1, num_sampled=1),)


def test_one_stage_runs_one_step_ahead_of_the_ids_it_knows():
    plan = schedule(num_stages=1)
    plan.add(1, prompt_tokens=5, cached=True, computed_tokens=4, runs_ahead=True)
    assert [step.rows[0].start for step in issue_all(plan)] == [4, 5]


def test_slot_does_not_run_ahead_past_a_change_of_its_members():
    plan = schedule(num_stages=1)
    plan.add(1, prompt_tokens=1, cached=True, runs_ahead=True)
    first = plan.next()
    plan.add(2, prompt_tokens=1, cached=True, runs_ahead=True)
    assert plan.next() is None
    plan.done(first)
    assert [row.sequence for row in plan.next().rows] == [1, 2]


def test_one_step_more_than_stages_is_in_flight_while_nobody_decodes():
    plan = schedule(num_stages=2)
    plan.add(1, prompt_tokens=100, cached=True)
    assert len(issue_all(plan)) == 3


def test_decode_steps_that_wait_behind_a_chunk_do_not_keep_the_next_chunk_from_the_first_stage():
    plan = schedule(num_stages=2)
    for sequence in range(2):
        plan.add(sequence, prompt_tokens=1, cached=True)
    plan.add(2, prompt_tokens=100, cached=True)
    assert [step.slot for step in issue_all(plan)] == [0, 1, None, None]


def test_sequence_that_only_reads_takes_no_slot_and_is_there_until_it_is_removed():
    plan = schedule(num_stages=2)
    plan.add(1, prompt_tokens=25, cached=True, reads_only=24)
    plan.add(2, prompt_tokens=25, cached=True, computed_tokens=24, reads_only=24)
    steps = []
    while step := plan.next():
        steps.append(step)
        plan.done(step)
    assert [(row.sequence, row.num_sampled) for step in steps for row in step.rows] == [(1, 0)] * len(steps)
    assert sum(row.count for step in steps for row in step.rows) == 24
    assert (plan.remove(1), plan.remove(2)) == (24, 24)
    assert len(plan) == 0


def test_sequence_that_only_reads_has_its_last_token_read_where_that_is_wanted():
    plan = schedule(num_stages=2)
    plan.add(1, prompt_tokens=25, cached=True, reads_only=25)
    plan.add(2, prompt_tokens=1, cached=True, reads_only=1)
    plan.add(3, prompt_tokens=25, cached=False, reads_only=25)
    steps = []
    while step := plan.next():
        steps.append(step)
        plan.done(step)
    read = {
        sequence: [row for step in steps for row in step.rows if row.sequence == sequence] for sequence in (1, 2, 3)
    }
    assert not any(row.num_sampled for rows in read.values() for row in rows)
    assert {sequence: sum(row.count for row in rows) for sequence, rows in read.items()} == {1: 25, 2: 1, 3: 25}
    assert all(step.slot is None for step in steps)


def test_newcomers_spread_over_as_many_slots_as_stages():
    plan = schedule(num_stages=2)
    for sequence in range(4):
        plan.add(sequence, prompt_tokens=1, cached=True)
    assert [[row.sequence for row in step.rows] for step in issue_all(plan)] == [[0, 2], [1, 3]]


def test_slot_that_emptied_is_filled_from_a_fuller_one():
    plan = schedule(num_stages=2)
    for sequence in range(4):
        plan.add(sequence, prompt_tokens=1, cached=True)
    plan.remove(1)
    plan.remove(3)
    assert [[row.sequence for row in step.rows] for step in issue_all(plan)] == [[0], [2]]


def members(plan: Schedule, num_steps: int) -> list[list[int]]:
    """The sequences of the slots' steps that are issued while each comes back before the next."""
    found = []
    for _ in range(num_steps):
        step = plan.next()
        found.append(sorted(row.sequence for row in step.rows))
        plan.done(step)
    return found


def test_long_sequence_shares_no_slot_with_short_ones_which_share_one_instead():
    plan = schedule(num_stages=2)
    for sequence in range(4):
        plan.add(sequence, prompt_tokens=100, computed_tokens=99, cached=True)
    assert members(plan, 2) == [[0, 2], [1, 3]]
    plan.add(4, prompt_tokens=5000, computed_tokens=4999, cached=True)
    assert sorted(members(plan, 3)[-2:]) == [[0, 1, 2, 3], [4]]
    plan.remove(4)
    assert sorted(members(plan, 4)[-2:]) == [[0, 2], [1, 3]]


def test_long_sequences_of_about_one_length_share_a_slot():
    plan = schedule(num_stages=1)
    for sequence in range(3):
        plan.add(sequence, prompt_tokens=5000 + 500 * sequence, computed_tokens=4999 + 500 * sequence, cached=True)
    assert members(plan, 1) == [[0, 1, 2]]


def test_caches_that_cannot_be_batched_decode_one_by_one_in_turn():
    plan = schedule(num_stages=1, max_rows=1)
    for sequence in range(3):
        plan.add(sequence, prompt_tokens=1, cached=True)
    order = []
    for _ in range(6):
        step = plan.next()
        order.append([row.sequence for row in step.rows])
        plan.done(step)
    assert order == [[0], [1], [2], [0], [1], [2]]


def test_ready_slots_decode_between_two_chunks_of_a_long_prompt():
    plan = schedule(num_stages=1)
    plan.add(1, prompt_tokens=1, cached=True)
    plan.add(2, prompt_tokens=41, cached=True)
    kinds = []
    for _ in range(8):
        step = plan.next()
        kinds.append("decode" if step.slot is not None else "chunk")
        plan.done(step)
    assert kinds == ["decode", "chunk"] * 4


def test_short_prompt_is_not_stuck_behind_a_long_one():
    plan = schedule(num_stages=1)
    plan.add(1, prompt_tokens=401, cached=True)
    plan.add(2, prompt_tokens=3, cached=True)
    seen = []
    while not seen or seen[-1] != 2:
        step = plan.next()
        seen.append(step.rows[0].sequence)
        plan.done(step)
    assert len(seen) == 2


def test_uncached_sequence_recomputes_everything_and_takes_turns():
    plan = schedule(num_stages=1)
    plan.add(1, prompt_tokens=5, cached=False)
    plan.add(2, prompt_tokens=7, cached=False)
    rows = []
    for _ in range(4):
        step = plan.next()
        rows.append(step.rows[0])
        plan.done(step)
    assert rows == [
        RowPlan(1, 0, 5, num_sampled=1),
        RowPlan(2, 0, 7, num_sampled=1),
        RowPlan(1, 0, 6, num_sampled=1),
        RowPlan(2, 0, 8, num_sampled=1),
    ]


def test_cancelled_sequence_takes_part_in_no_further_step():
    plan = schedule(num_stages=2)
    for sequence in range(3):
        plan.add(sequence, prompt_tokens=9, cached=sequence != 1)
    step = plan.next()
    for sequence in range(3):
        plan.remove(sequence)
    plan.done(step)
    assert plan.next() is None
    assert plan.num_in_flight == 0


@given(st.data())
def test_every_token_is_computed_once_in_order_under_random_arrivals_and_cancellations(data):
    plan = schedule(
        num_stages=data.draw(st.integers(1, 4)),
        chunk_tokens=data.draw(st.integers(1, 7)),
        max_rows=data.draw(st.integers(1, 4)),
        room=data.draw(st.integers(0, 20)),
    )
    computed: dict[int, int] = {}
    lengths: dict[int, int] = {}
    in_flight: list[StepPlan] = []
    for number in range(data.draw(st.integers(1, 60))):
        action = data.draw(st.sampled_from(["add", "next", "next", "done", "done", "cancel"]))
        if action == "add":
            lengths[number] = data.draw(st.integers(1, 20))
            computed[number] = 0
            client, runs_ahead = data.draw(st.sampled_from("abc")), data.draw(st.booleans())
            plan.add(number, prompt_tokens=lengths[number], cached=True, client=client, runs_ahead=runs_ahead)
        elif action == "cancel" and lengths:
            gone = data.draw(st.sampled_from(sorted(lengths)))
            plan.remove(gone)
            del lengths[gone]
        elif action == "next" and (step := plan.next()):
            assert len({row.sequence for row in step.rows}) == len(step.rows)
            for row in step.rows:
                assert row.sequence in lengths
                assert row.start == computed[row.sequence]
                computed[row.sequence] += row.count
                known = lengths[row.sequence] + sum(
                    other.num_sampled for flying in in_flight for other in flying.rows if other.sequence == row.sequence
                )
                assert computed[row.sequence] <= known
                assert row.num_sampled == (computed[row.sequence] == known)
            in_flight.append(step)
        elif action == "done" and in_flight:
            step = in_flight.pop(0)
            plan.done(step)
            for row in step.rows:
                if row.sequence in lengths:
                    lengths[row.sequence] += row.num_sampled


# --- prompts that are read together


def next_chunk(plan):
    """The rows of the next chunk; every step comes back at once."""
    while step := plan.next():
        plan.done(step)
        if step.slot is None:
            return [(row.sequence, row.start, row.count) for row in step.rows]
    raise AssertionError("nothing is left to read")


def test_last_chunks_of_prompts_share_a_step_as_far_as_there_is_room():
    plan = schedule(num_stages=1, chunk_tokens=10, room=20)
    for sequence, num_tokens in enumerate((7, 5, 8, 9)):
        plan.add(sequence, prompt_tokens=num_tokens, cached=True)
    assert next_chunk(plan) == [(0, 0, 6), (1, 0, 4)]
    assert next_chunk(plan) == [(2, 0, 7), (3, 0, 8)]


def test_what_a_long_prompt_has_left_is_read_with_others_and_its_chunks_are_not():
    plan = schedule(num_stages=1, chunk_tokens=10, room=20)
    plan.add(1, prompt_tokens=16, cached=True)
    plan.add(2, prompt_tokens=8, cached=True, computed_tokens=2)
    assert next_chunk(plan) == [(1, 0, 10)]
    assert next_chunk(plan) == [(2, 2, 5), (1, 10, 5)]


def test_prompts_that_were_read_together_decode_together():
    plan = schedule(num_stages=1, chunk_tokens=10, room=40)
    for sequence in (1, 2, 3):
        plan.add(sequence, prompt_tokens=6 + sequence, cached=True)
    read = plan.next()
    assert [row.sequence for row in read.rows] == [1, 2, 3]
    plan.done(read)
    assert [(row.sequence, row.start, row.num_sampled) for row in plan.next().rows] == [(1, 6, 1), (2, 7, 1), (3, 8, 1)]


def test_who_is_to_be_read_alone_shares_no_step():
    plan = schedule(num_stages=1, chunk_tokens=10, room=40)
    for sequence in (1, 2, 3, 4):
        plan.add(sequence, prompt_tokens=6, cached=True, reads_only=5 if sequence == 2 else None)
    plan.read_alone(3)
    assert [next_chunk(plan) for _ in range(3)] == [[(1, 0, 5), (4, 0, 5)], [(2, 0, 5)], [(3, 0, 5)]]
    plan = schedule(num_stages=1, chunk_tokens=10, room=40)
    for sequence in (1, 2):
        plan.add(sequence, prompt_tokens=6, cached=True)
    plan.read_alone(1)
    assert next_chunk(plan) == [(1, 0, 5)]


def test_no_more_prompts_share_a_step_than_rows_fit_nor_with_much_longer_ones():
    plan = schedule(num_stages=1, chunk_tokens=10, max_rows=2, room=400)
    for sequence in (1, 2, 3):
        plan.add(sequence, prompt_tokens=6, cached=True)
    assert [row.sequence for row in plan.next().rows] == [1, 2]
    plan = schedule(num_stages=1, chunk_tokens=10, room=400)
    plan.add(1, prompt_tokens=5006, cached=True, computed_tokens=5000)
    plan.add(2, prompt_tokens=6, cached=True)
    assert [row.sequence for row in plan.next().rows] == [1]


def test_who_was_read_with_others_had_its_clients_turn():
    plan = schedule(num_stages=1, chunk_tokens=10, room=12)
    for sequence, client in enumerate("aab"):
        plan.add(sequence, prompt_tokens=6 if sequence != 1 else 9, cached=True, client=client)
    plan.add(3, prompt_tokens=9, cached=True, client="b")
    plan.add(4, prompt_tokens=9, cached=True, client="c")
    assert next_chunk(plan) == [(0, 0, 5), (2, 0, 5)]
    assert [next_chunk(plan)[0][0] for _ in range(3)] == [4, 1, 3]


# --- clients


def served(plan, count):
    """The next steps, each of which comes back before the one after; returns whose sequences were in them."""
    steps = []
    for _ in range(count):
        step = plan.next()
        steps.append([row.sequence for row in step.rows])
        plan.done(step)
    return steps


def many_of_one_client(num_stages=2, max_rows=2, *, decoding=8, prefilling=0):
    plan = schedule(num_stages=num_stages, max_rows=max_rows)
    for number in range(decoding):
        plan.add(number, prompt_tokens=1, cached=True, client="many")
    for number in range(decoding, decoding + prefilling):
        plan.add(number, prompt_tokens=400, cached=True, client="many")
    served(plan, 10)
    return plan


def test_prompt_of_another_client_is_not_stuck_behind_the_many_of_one():
    plan = many_of_one_client(decoding=0, prefilling=50)
    plan.add(100, prompt_tokens=9, cached=True, client="one")
    assert served(plan, 6) == [[10], [100], [11], [100], [100], [12]]


def test_client_without_a_token_yet_waits_for_one_decode_step_and_then_has_the_next_turn():
    plan = many_of_one_client()
    plan.add(100, prompt_tokens=9, cached=True, client="one")
    steps = served(plan, 8)
    assert [sequences for sequences in steps if sequences == [100]] == [[100]] * 3
    assert steps[:4] == [[100], [4, 5], [100], [100]]


def test_further_requests_of_a_client_wait_for_every_slot_as_ever():
    plan = many_of_one_client(decoding=8)
    plan.add(100, prompt_tokens=90, cached=True, client="many")
    chunks = [index for index, sequences in enumerate(served(plan, 20)) if sequences == [100]]
    assert len(chunks) > 3
    assert {later - earlier for earlier, later in pairwise(chunks)} == {5}


def test_many_newcomers_do_not_leave_every_sequence_in_a_slot_of_its_own():
    plan = schedule(num_stages=2, max_rows=8)
    for number in range(32):
        plan.add(number, prompt_tokens=1, cached=True, client=f"client-{number}")
    served(plan, 40)
    assert len(plan._slots) <= 4
    served(plan, 40)
    assert sum(len(slot.members) for slot in plan._slots.values()) == 32


def test_uncached_sequences_of_a_client_do_not_hold_up_those_of_another():
    plan = schedule()
    for number in range(20):
        plan.add(number, prompt_tokens=3, cached=False, client="many")
    plan.add(100, prompt_tokens=3, cached=False, client="one")
    steps = served(plan, 10)
    assert steps.count([100]) == 5
