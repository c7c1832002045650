"""Run as a process of its own, see `in_child`, since ranks are threads: models that are cut into ranks, under everything that is
done with models.
"""

import tempfile
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from protocol.values import KvSettings, LayerRange
from tests.support.in_child import run_cases
from workers import zoo
from workers.cache.stage_cache import StageCache
from workers.model import loading
from workers.model.needed_exchanges import exchanges_for_caches
from workers.model.split_model import SplitModel
from workers.tensor.cuts import apply, layer_bytes
from workers.tensor.exchange import exchange_of, silent
from workers.tensor.group import ThreadGroup, on_threads
from workers.tensor.trying import derive_here

SIZE = 2
PASSES = ([11, 30, 4, 99, 7, 18, 200, 31, 5, 77, 8, 64], [9], [14])
KINDS = (
    KvSettings(kind="dynamic"),
    KvSettings(kind="static", max_tokens=64),
    KvSettings(kind="rotating", max_tokens=8, keep=2),
    KvSettings(kind="quantized", bits=8, group_size=32),
    KvSettings(kind="paged"),
)


class Ranked:
    """A tiny model with its plan; `on_ranks` gives each rank its part of it."""

    def __init__(self, architecture, **options):
        self.path = zoo.make_tiny_model(architecture, Path(tempfile.mkdtemp()), **options)
        self.plan = derive_here(loading.read_config(self.path), SIZE)

    def whole(self):
        return SplitModel(loading.load(self.path))

    def part(self, group):
        model = loading.load(self.path)
        apply(model, self.plan, group)
        return SplitModel(model)

    def on_ranks(self, action):
        return on_threads(SIZE, lambda group: action(self.part(group), group))


def logits(split, kv=None, passes=PASSES, cache=None):
    layers = LayerRange(0, split.num_layers)
    cache = cache or split.make_cache(layers, kv)
    found = []
    for ids in passes:
        output = split.forward(mx.array([ids], mx.int32), layers=layers, cache=cache)
        split.evaluate(output, cache)
        found.append(output)
    return found


def assert_near(found, expected, within=2e-5):
    for mine, whole in zip(found, expected, strict=True):
        assert mine.shape == whole.shape
        assert float(mx.abs(mine - whole).max().item()) <= within


def two_stages_of_two_ranks():
    """Also where later stages need embeddings, which are cut with the projection."""
    for architecture, options in (
        ("qwen3", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("gemma4_text", {}),
        ("talkie", {}),
    ):
        ranked = Ranked(architecture, **options)
        expected = logits(ranked.whole())
        cut = 3
        second = ThreadGroup.of(SIZE)

        def on_rank(first, group, ranked=ranked, second=second, cut=cut):
            stages = [(first, LayerRange(0, cut)), (ranked.part(second[group.rank]), LayerRange(cut, first.num_layers))]
            caches = [split.make_cache(layers) for split, layers in stages]
            for split, layers in stages:
                split.warm_up(layers)
            found = []
            for ids in PASSES:
                payload = None
                for (split, layers), cache in zip(stages, caches, strict=True):
                    payload = split.forward(mx.array([ids], mx.int32), layers=layers, cache=cache, payload=payload)
                    split.evaluate(payload, cache)
                found.append(payload)
            return found, [split.weights.held_layers() for split, _ in stages]

        for found, held in ranked.on_ranks(on_rank):
            assert_near(found, expected)
            assert held == [[0, 1, 2], [3, 4, 5]], held


def every_kind_of_cache():
    ranked = Ranked("qwen3", head_dim=32)
    for kv in KINDS:
        expected = logits(ranked.whole(), kv)
        for found in ranked.on_ranks(lambda split, _, kv=kv: logits(split, kv)):
            assert_near(found, expected, 1e-2 if kv.kind == "quantized" else 2e-5)


def kinds_that_need_all_keys_are_refused():
    """Values can be computed from all keys of a layer, not from a rank's."""
    kv = KvSettings(kind="keys-only")
    ranked = Ranked("llama")
    assert ranked.whole().kv_kind(kv.kind).why_not(kv) is None
    found = ranked.on_ranks(lambda split, _: split.kv_kind(kv.kind).why_not(kv))
    assert all(found), found


def caches_are_of_local_heads():
    """Keys of attention, and the states of layers with gated deltas."""
    for architecture, whole_heads in (("qwen3", 2), ("qwen3_next", 4)):
        ranked = Ranked(architecture)

        def heads(split, _=None):
            layers = LayerRange(0, split.num_layers)
            cache = split.make_cache(layers)
            split.evaluate(split.forward(mx.array([PASSES[0]], mx.int32), layers=layers, cache=cache), cache)
            first = cache.entries[0]
            return (first.keys if hasattr(first, "keys") else first.cache[1]).shape[1]

        assert heads(ranked.whole()) == whole_heads
        assert ranked.on_ranks(heads) == [whole_heads // SIZE] * SIZE


def batches():
    ranked = Ranked("qwen3_moe")
    prompts = PASSES[0], PASSES[0][3:8]
    expected = [logits(ranked.whole(), passes=[prompt, [9]])[1] for prompt in prompts]

    def on_rank(split, _):
        layers = LayerRange(0, split.num_layers)
        caches = [split.make_cache(layers) for _ in prompts]
        for prompt, cache in zip(prompts, caches, strict=True):
            split.evaluate(split.forward(mx.array([prompt], mx.int32), layers=layers, cache=cache), cache)
        batch = StageCache.merge(caches)
        output = split.forward(mx.array([[9], [9]], mx.int32), layers=layers, cache=batch)
        split.evaluate(output, batch)
        return output

    for found in ranked.on_ranks(on_rank):
        assert_near([found[:1], found[1:]], expected)


def looking_waits_for_nobody():
    """One rank alone finds what its stage needs, plans caches, and gives weights back; a rank that it waited for would never come."""
    ranked = Ranked("gemma3_text", head_dim=32)
    group = ThreadGroup.of(SIZE)[1]
    split = ranked.part(group)
    layers = LayerRange(2, 4)
    assert split.read(layers) > 0
    read = split.weights.num_bytes
    assert len(split.caches_by_layer()) == split.num_layers
    assert split.kv_kind("quantized").why_not(KvSettings(kind="quantized", bits=8, group_size=32)) is None
    split.release(ranked.path, [LayerRange(2, 3)])
    assert split.weights.num_bytes < read
    assert split.weights.held_layers() == [2]
    assert split.read(layers) > 0
    assert split.weights.num_bytes == read


def a_rank_never_holds_more_than_its_part_and_one_layer():
    ranked = Ranked("llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=8, vocab_size=320)
    split = ranked.part(ThreadGroup.of(SIZE)[0])
    mine = layer_bytes(split.model)
    whole = layer_bytes(loading.load(ranked.path))
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    split.read(LayerRange(0, split.num_layers))
    outside = split.weights.num_bytes - sum(mine)
    assert mx.get_active_memory() - before <= sum(mine) + outside + (64 << 10)
    assert mx.get_peak_memory() - before <= sum(mine) + outside + max(whole) + (1 << 20)


def where_one_layer_cannot_be_cut_by_heads_none_is():
    """Layers may use the keys of others. What cannot be cut so is gathered, and the caches are whole."""
    ranked = Ranked("qwen3")
    expected = logits(ranked.whole())

    def on_rank(group):
        model = loading.load(ranked.path)
        model.layers[2].self_attn.n_kv_heads = 3  # which four query heads cannot share
        apply(model, ranked.plan, group)
        model.layers[2].self_attn.n_kv_heads = 2
        return [layer.self_attn.n_heads for layer in model.layers], logits(SplitModel(model))

    for heads, found in on_threads(SIZE, on_rank):
        assert heads == [4] * 6
        assert_near(found, expected)


def embeddings_need_no_logits():
    ranked = Ranked("llama", tie_word_embeddings=True)

    def hidden(split, _=None):
        layers = LayerRange(0, split.num_layers)
        cache = split.make_cache(layers)
        found = split.hidden_states(mx.array([PASSES[0]], mx.int32), layers=layers, cache=cache)
        split.evaluate(found, cache)
        return found

    for found in ranked.on_ranks(hidden):
        assert_near([found], [hidden(ranked.whole())])


def chunks_exchange_only_what_their_caches_need():
    """Behind the last layer's keys and values, or its states, nothing; and the next passes do not notice."""
    for architecture, num_left_out in (("qwen3", 2), ("cohere", 2), ("mamba2", 1), ("qwen3_next", 2), ("gemma3n", 15)):
        ranked = Ranked(architecture)
        expected = logits(ranked.whole())[1:]

        def on_rank(split, _):
            layers, exchange = LayerRange(0, split.num_layers), exchange_of(split.model)
            needed = exchanges_for_caches(split, exchange, layers, None)
            cache = split.make_cache(layers)
            before = exchange.num_exchanges
            with exchange.first(needed):
                split.forward(mx.array([PASSES[0]], mx.int32), layers=layers, cache=cache)
                split.evaluate(None, cache)
            return exchange.num_exchanges - before - needed, logits(split, passes=PASSES[1:], cache=cache)

        for left_out, found in ranked.on_ranks(on_rank):
            assert left_out == num_left_out, (architecture, left_out)
            assert_near(found, expected)


def a_silent_pass_has_the_shapes_of_a_real_one():
    ranked = Ranked("gpt2")
    model = loading.load(ranked.path)
    apply(model, ranked.plan, ThreadGroup.of(SIZE)[1])
    with silent(model):
        assert model(mx.array([[1, 2]], mx.int32), cache=make_prompt_cache(model)).shape == (1, 2, 320)


CASES = {
    case.__name__: case
    for case in (
        two_stages_of_two_ranks, every_kind_of_cache, kinds_that_need_all_keys_are_refused, caches_are_of_local_heads,
        batches, looking_waits_for_nobody, where_one_layer_cannot_be_cut_by_heads_none_is,
        a_rank_never_holds_more_than_its_part_and_one_layer, embeddings_need_no_logits,
        a_silent_pass_has_the_shapes_of_a_real_one, chunks_exchange_only_what_their_caches_need,
    )
}  # fmt: skip


if __name__ == "__main__":
    run_cases(CASES)
