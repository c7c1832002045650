"""What is reused and what is given up, for blocks and for snapshots."""

from hypothesis import given
from hypothesis import strategies as st

from strategy.prefix import BLOCK_TOKENS, NO_MATCH, PrefixDirectory, block_keys

SYSTEM = list(range(3 * BLOCK_TOKENS))


def directory(capacity=100, *, snapshots=False) -> PrefixDirectory:
    return PrefixDirectory(capacity=capacity, snapshots=snapshots)


def test_longest_run_of_full_blocks_is_reused():
    known = directory()
    known.keep(SYSTEM, "")
    assert known.match([*SYSTEM, 7, 8], "").num_tokens == 3 * BLOCK_TOKENS
    assert known.match([*SYSTEM[: 2 * BLOCK_TOKENS], *[9] * 100], "").num_tokens == 2 * BLOCK_TOKENS
    assert known.match([5, *SYSTEM], "") == NO_MATCH


def test_tail_behind_the_last_full_block_is_reused_by_what_goes_on_there():
    known = directory()
    said = [*SYSTEM, 1, 2, 3]
    kept = known.keep(said, "", tail=True)
    assert [part[:2] for part in kept.parts][-1] == (len(SYSTEM), len(said))
    assert known.match([*said, 4], "").num_tokens == len(said)
    assert known.match([*said, *[9] * 100], "").num_tokens == len(said)
    assert known.match([*SYSTEM, 1, 2, 4, 5], "").num_tokens == len(SYSTEM)
    assert known.match(said, "").num_tokens == len(SYSTEM)


def test_longest_of_several_tails_is_reused():
    known = directory()
    for length in (1, 3, 2):
        known.keep([*SYSTEM, *[7] * length], "", tail=True)
    assert known.match([*SYSTEM, *[7] * 9], "").num_tokens == len(SYSTEM) + 3


def test_running_sequence_leaves_no_tail():
    known = directory()
    known.keep([*SYSTEM, 1], "")
    assert known.match([*SYSTEM, 1, 2], "").num_tokens == len(SYSTEM)


def test_conversation_that_goes_on_gives_its_old_tail_back():
    known = directory()
    tail = known.keep([*SYSTEM, 1], "", conversation="c", tail=True).parts[-1][2]
    assert known.keep([*SYSTEM, 1, 2], "", conversation="c", tail=True).evicted == (tail,)


def test_at_least_one_token_is_left_to_compute():
    known = directory()
    known.keep(SYSTEM, "")
    assert known.match(SYSTEM, "").num_tokens == 2 * BLOCK_TOKENS


def test_scopes_share_nothing():
    known = directory()
    known.keep(SYSTEM, "alice")
    assert known.match([*SYSTEM, 1], "bob") == NO_MATCH
    assert known.match([*SYSTEM, 1], "alice").num_tokens == 3 * BLOCK_TOKENS


def test_end_of_the_least_recent_chain_goes_first():
    known = directory(capacity=4)
    known.keep(SYSTEM, "")
    other = known.keep([99] * (2 * BLOCK_TOKENS), "")
    assert other.evicted == (block_keys(SYSTEM, "")[2],)
    assert known.match([*SYSTEM, 1], "").num_tokens == 2 * BLOCK_TOKENS


def test_what_a_running_sequence_uses_is_not_evicted():
    known = directory(capacity=3)
    known.keep(SYSTEM, "")
    match = known.match([*SYSTEM, 1], "")
    kept = known.keep([99] * (2 * BLOCK_TOKENS), "")
    assert not set(kept.evicted) & set(match.keys)
    known.release(match)
    known.keep([98] * (3 * BLOCK_TOKENS), "")
    assert known.match([*SYSTEM, 1], "") == NO_MATCH


def test_pinned_conversation_outlives_more_recent_strangers():
    known = directory(capacity=3)
    known.keep(SYSTEM, "", conversation="c")
    known.keep([99] * (3 * BLOCK_TOKENS), "")
    assert known.match([*SYSTEM, 1], "").num_tokens == 3 * BLOCK_TOKENS


def test_edited_conversation_gives_back_what_it_no_longer_contains():
    known = directory()
    known.keep(SYSTEM, "", conversation="c")
    edited = [*SYSTEM[: 2 * BLOCK_TOKENS], *[7] * BLOCK_TOKENS]
    assert known.keep(edited, "", conversation="c").evicted == (block_keys(SYSTEM, "")[2],)


def test_deleted_conversation_gives_back_all_that_only_it_had():
    known = directory()
    known.keep(SYSTEM, "", conversation="c")
    known.keep(SYSTEM[: 2 * BLOCK_TOKENS], "", conversation="d")
    assert known.forget_conversation("c") == [block_keys(SYSTEM, "")[2]]
    assert known.forget_conversation("unknown") == []


def test_snapshot_is_reused_only_whole():
    known = directory(snapshots=True)
    known.keep(SYSTEM[:100], "")
    known.keep(SYSTEM[:40], "")
    assert known.match(SYSTEM, "").num_tokens == 100
    assert known.match(SYSTEM[:100], "").num_tokens == 40
    assert known.match([5, *SYSTEM], "") == NO_MATCH


def test_keys_of_an_earlier_life_are_known_again():
    known = directory(capacity=2)
    keys = block_keys(SYSTEM, "")
    gone = known.restore([(key, 0) for key in reversed(keys)])
    assert gone == [keys[2]]
    assert known.match([*SYSTEM, 1], "").num_tokens == 2 * BLOCK_TOKENS


class Obeying:
    """A stage that does what the directory says: the tokens behind each key that it holds."""

    def __init__(self):
        self.held: dict[bytes, tuple[int, ...]] = {}

    def keep(self, tokens, kept):
        for _, end, key in kept.parts:
            self.held[key] = tuple(tokens[:end])
        self.drop(kept.evicted)

    def drop(self, keys):
        for key in keys:
            del self.held[key]


def drawn_tokens(data):
    alphabet = st.integers(0, 1)
    blocks = data.draw(st.lists(alphabet, min_size=1, max_size=4))
    return [token for token in blocks for _ in range(BLOCK_TOKENS)] + data.draw(st.lists(alphabet, max_size=3))


@given(st.data())
def test_stages_that_obey_hold_exactly_what_the_directory_knows(data):
    known = directory(data.draw(st.integers(1, 8)), snapshots=data.draw(st.booleans()))
    stage = Obeying()
    open_matches = []
    for _ in range(data.draw(st.integers(1, 25))):
        tokens = drawn_tokens(data)
        action = data.draw(st.sampled_from(["match", "keep", "release", "delete"]))
        if action == "match":
            match = known.match(tokens, "")
            assert match.num_tokens < len(tokens)
            assert all(stage.held[key] == tuple(tokens[: len(stage.held[key])]) for key in match.keys)
            open_matches.append(match)
        elif action == "release" and open_matches:
            known.release(open_matches.pop())
        elif action == "delete":
            stage.drop(known.forget_conversation("0"))
        elif action == "keep":
            conversation, tail = data.draw(st.sampled_from([None, "0", "1"])), data.draw(st.booleans())
            stage.keep(tokens, known.keep(tokens, "", conversation=conversation, tail=tail))
        assert all(key in known for key in stage.held)
        assert len(stage.held) == len(known)
        assert all(key in stage.held for match in open_matches for key in match.keys)
