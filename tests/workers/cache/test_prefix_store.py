"""What a stage keeps of past sequences: what it says it has, and what it gives up by itself."""

import pytest

from protocol.values import LayerRange
from strategy.prefix import KEY_BYTES
from tests.support.loaded_stages import executor_of, load, loader_for, ran, same
from workers.cache.prefix_store import PrefixStore
from workers.model.split_model import SplitModel
from workers.zoo import make_tiny_model

LAYERS = LayerRange(0, 3)
BLOCK = 16


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {"llama": make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")}


@pytest.fixture
def stages_of(models, tmp_path):
    """Loads plans on one worker; gives the executor of each."""
    loader = loader_for(models, tmp_path)
    return lambda *layers, **options: executor_of(load(loader, "llama", *layers, 6, **options))


def keep(executor, seed, num_blocks=2):
    """Keep a sequence in blocks of 16 tokens; returns their keys and the tokens."""
    tokens = [(seed * 31 + 7 * index) % 290 + 5 for index in range(num_blocks * BLOCK)]
    cache = executor.prefixes.begin((), None)
    ran(executor._model, executor._stage.layers, tokens, cache)
    keys = [bytes([seed, number]) * (KEY_BYTES // 2) for number in range(num_blocks)]
    executor.prefixes.keep(cache, [(number * BLOCK, (number + 1) * BLOCK) for number in range(num_blocks)], keys)
    return keys, tokens


def known(executor):
    return [key for key, _ in executor.prefixes.known]


def test_parts_in_memory_are_known_after_the_same_plan_came_again(stages_of):
    before = stages_of(*LAYERS)
    keys, tokens = keep(before, 1)
    after = stages_of(*LAYERS)
    assert after.prefixes.known == [(keys[1], 2 * BLOCK), (keys[0], BLOCK)]
    cache = after.prefixes.begin(keys, None)
    whole = after._model.make_cache(LAYERS)
    ran(after._model, LAYERS, tokens, whole)
    assert same(*(ran(after._model, LAYERS, [9, 8], used) for used in (cache, whole)))


def test_parts_on_disk_are_known_with_their_lengths_before_those_in_memory(stages_of):
    executor = stages_of(*LAYERS, disk=1 << 20)
    first, _ = keep(executor, 1)
    executor.prefixes.flush()
    executor.prefixes.limit(memory_bytes=1, copy_bytes=0)
    second, _ = keep(executor, 2)
    assert executor.prefixes.known == [
        (first[1], 2 * BLOCK), (first[0], BLOCK), (second[1], 2 * BLOCK), (second[0], BLOCK)
    ]  # fmt: skip
    executor.prefixes.begin(first, None)
    assert known(executor)[-1] == first[0]
    assert dict(executor.prefixes.known)[first[0]] == BLOCK


def test_what_is_kept_goes_to_disk_only_until_the_time_is_over(stages_of):
    executor = stages_of(*LAYERS, disk=1 << 20)
    keep(executor, 1)
    spilled = iter((False, True))
    executor.prefixes.flush(lambda: next(spilled))
    assert len(executor.prefixes._disk.num_tokens_by_key) == 1
    executor.prefixes.flush()
    assert len(executor.prefixes._disk.num_tokens_by_key) == 2


def test_range_that_comes_back_finds_what_it_had_on_disk(stages_of):
    keys, _ = keep(stages_of(0, 3, disk=1 << 20), 1)
    assert known(stages_of(3, 6, disk=1 << 20)) == []
    assert set(known(stages_of(0, 3, disk=1 << 20))) == set(keys)


def test_parts_that_no_directory_names_any_more_are_the_first_to_go(stages_of):
    executor = stages_of(*LAYERS)
    forgotten, _ = keep(executor, 1)
    size = executor.prefixes.num_bytes
    executor.prefixes.limit(memory_bytes=3 * size, copy_bytes=0)
    in_use, _ = keep(executor, 2)
    for seed in range(3, 20):
        executor.prefixes.begin(in_use, None)
        newest, _ = keep(executor, seed)
        assert executor.prefixes.num_bytes <= 3 * size
        assert set(in_use) <= set(known(executor))
    assert not set(forgotten) & set(known(executor))
    assert set(newest) <= set(known(executor))


def test_part_that_is_kept_again_counts_as_used(stages_of):
    executor = stages_of(*LAYERS)
    first, _ = keep(executor, 1)
    keep(executor, 2)
    keep(executor, 1)
    assert known(executor)[-2:] == first[::-1]


def test_end_of_a_chain_goes_before_its_beginning(stages_of):
    executor = stages_of(*LAYERS)
    keys, _ = keep(executor, 1, num_blocks=4)
    executor.prefixes.limit(memory_bytes=executor.prefixes.num_bytes // 2, copy_bytes=0)
    assert set(known(executor)) == set(keys[:2])


def test_store_that_is_given_up_takes_no_memory(models):
    model = SplitModel.load(models["llama"])
    store = PrefixStore(model, LAYERS, memory_bytes=1 << 20)
    cache = store.begin((), None)
    ran(model, LAYERS, list(range(5, 5 + BLOCK)), cache)
    store.keep(cache, [(0, BLOCK)], [b"k" * KEY_BYTES])
    assert store.num_bytes > 0
    store.retire()
    assert (store.num_bytes, store.known) == (0, [])


def test_emptied_executor_has_no_sequences_and_keeps_its_parts(stages_of):
    before = stages_of(*LAYERS)
    keys, _ = keep(before, 1)
    before._sequences[1] = None
    after = stages_of(*LAYERS)
    assert after is before
    assert len(after) == after.kv_bytes == 0
    assert len(after.prefixes) == len(keys)
