"""How many parts a route's head may count on, from what its stages said."""

import pytest

from cluster.planning.kept_prefixes import KeptPrefixes
from protocol.messages import KeptPrefix, Loaded
from protocol.values import Route, pack_ids, pack_keys
from strategy.memory import KvGrowth, KvNeeds, WorkerBudget, sequence_bytes
from strategy.prefix import BLOCK_TOKENS, KEY_BYTES

ROUTE = Route(("a", "b", "c"))
NEEDS = KvNeeds(fixed_bytes=0, growth=(KvGrowth(1, None),), snapshots=False)
KEYS = [bytes([number]) * KEY_BYTES for number in range(3)]
BUDGET = WorkerBudget(prefix_bytes=2 * 60 * BLOCK_TOKENS, sequence_bytes=0)


@pytest.fixture
def kept():
    """Three stages, each without one of the keys or with all."""
    kept = KeptPrefixes()
    for worker, keys in zip(ROUTE, (KEYS, KEYS[:2], KEYS[1:]), strict=True):
        buffers = (pack_keys(keys), pack_ids([BLOCK_TOKENS] * len(keys)))
        loaded = Loaded(
            worker=worker, weights_bytes=1, vocabulary_size=400, prefixes=(KeptPrefix(route=ROUTE, needs=NEEDS),)
        )
        kept.loaded(loaded, buffers)
    return kept


def test_head_may_count_on_what_every_stage_has(kept):
    _, buffers = kept.known(ROUTE, dict.fromkeys(ROUTE, BUDGET), 0, kv_copies=0)
    assert buffers == (KEYS[1], pack_ids([BLOCK_TOKENS]))


def test_sequences_need_room_for_the_draft_on_the_head_of_their_route_and_kept_parts_do_not(kept):
    _, before = kept.known(ROUTE, dict.fromkeys(ROUTE, BUDGET), 0, kv_copies=0)
    for worker in ROUTE:
        draft = KvNeeds(fixed_bytes=7, growth=(KvGrowth(3, None),), snapshots=True)
        kept.loaded(Loaded(worker=worker, weights_bytes=1, vocabulary_size=400, draft=draft), ())
    head, *others = (kept.needs_with_drafts[ROUTE][worker] for worker in ROUTE)
    assert sequence_bytes(head, 512) == sequence_bytes(NEEDS, 512) + 7 + 3 * 512
    assert head.snapshots == NEEDS.snapshots
    assert others == [NEEDS] * 2
    assert kept.known(ROUTE, dict.fromkeys(ROUTE, BUDGET), 0, kv_copies=0)[1] == before


@pytest.mark.parametrize(("kv_copies", "capacity"), [(0, 60), (1, 20)])
def test_stage_that_holds_copies_of_two_others_has_a_third_of_its_room_for_its_own(kept, kv_copies, capacity):
    message, _ = kept.known(ROUTE, dict.fromkeys(ROUTE, BUDGET), 0, kv_copies=kv_copies)
    assert message.capacity == capacity
