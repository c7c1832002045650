"""What stays loaded from one plan to the next, what is read, and what is given back."""

import json
import struct

import mlx.core as mx
import msgspec
import pytest
from mlx.utils import tree_flatten

from protocol.errors import ModelError
from protocol.messages import PrepareStage
from protocol.values import KvSettings, LayerRange, Route
from strategy.vocabulary import NO_LAYERS
from tests.support.loaded_stages import NOWHERE, load, loader_for, model_of, plan, ran, same
from workers.model.split_model import SplitModel
from workers.model.warming import NoNumbers
from workers.zoo import make_tiny_model

TOKENS = [5, 9, 200, 31, 7]
ARCHITECTURES = ("llama", "qwen3", "gemma3_text", "mamba2", "qwen3_moe", "gpt2")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: make_tiny_model(name, root / name) for name in ARCHITECTURES}


@pytest.fixture
def loader_of(models, tmp_path):
    """A loader that finds each model under its architecture's name."""
    return lambda places=models: loader_for(places, tmp_path)


def outputs(split, layers, whole):
    """What a range makes of some tokens, after what the whole model makes of the layers before."""
    before = LayerRange(0, layers[0])
    payload = ran(whole, before, TOKENS, whole.make_cache(before)) if layers[0] else None
    return ran(split, layers, TOKENS, split.make_cache(layers), payload)


def layer_bytes(split, *indices):
    return sum(weight.nbytes for index in indices for _, weight in tree_flatten(split.layers[index].parameters()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_range_that_grew_and_shrank_computes_what_a_freshly_loaded_one_does(architecture, models, loader_of):
    loader, whole = loader_of(), SplitModel.load(models[architecture])
    last = whole.num_layers
    for start, stop in ((1, 2), (1, 3), (0, 3), (0, 1), (last - 1, last), (1, last), (0, last), (1, 3)):
        layers = LayerRange(start, stop)
        stages = load(loader, architecture, start, stop, last)
        fresh = SplitModel.load(models[architecture])
        fresh.warm_up(layers)
        kept = model_of(stages)
        assert kept.weights.num_bytes == fresh.weights.num_bytes
        assert loader.held == (architecture, (layers,))
        assert same(outputs(kept, layers, whole), outputs(fresh, layers, whole))
        assert kept.weights.num_bytes == fresh.weights.num_bytes


def test_unchanged_plan_reads_nothing_and_keeps_emptied_executors_and_costs(loader_of):
    loader = loader_of()
    first = load(loader, "llama", 0, 3, 6)
    again = load(loader, "llama", 0, 3, 6)
    assert first.read_bytes > 0
    assert again.read_bytes == 0
    assert again.executors == first.executors
    assert again.chunk_costs == first.chunk_costs
    assert again.prefixes == first.prefixes


def test_growing_by_one_layer_reads_that_layer(loader_of):
    loader = loader_of()
    first = load(loader, "llama", 0, 3, 6)
    second = load(loader, "llama", 0, 4, 6)
    assert second.read_bytes == layer_bytes(model_of(second), 3)
    assert model_of(second) is model_of(first)
    assert second.executors != first.executors


def test_range_that_moves_reads_its_new_layers_and_its_end_of_the_model(loader_of):
    loader = loader_of()
    load(loader, "llama", 0, 3, 6)
    moved = load(loader, "llama", 2, 6, 6)
    model = model_of(moved).model
    ends = model.lm_head.weight.nbytes + model.model.norm.weight.nbytes
    assert moved.read_bytes == layer_bytes(model_of(moved), 3, 4, 5) + ends


def test_chunk_costs_of_another_range_are_scaled_by_its_layers(loader_of):
    loader, pipeline = loader_of(), Route(("own", "behind"))
    first = load(loader, "llama", 0, 2, 6).chunk_costs[pipeline]
    second = load(loader, "llama", 0, 4, 6).chunk_costs[pipeline]
    assert (second.fixed_s, second.token_s) == (pytest.approx(2 * first.fixed_s), pytest.approx(2 * first.token_s))


def test_holder_of_the_full_model_keeps_all_of_it_while_its_stage_changes(loader_of):
    loader = loader_of()
    first = load(loader, "llama", 0, 3, 6, full=True)
    second = load(loader, "llama", 0, 5, 6, full=True)
    assert second.read_bytes == 0
    assert loader.held == ("llama", (LayerRange(0, 6),))
    assert second.executors[Route(("own",))] is first.executors[Route(("own",))]


def test_memory_of_layers_that_nobody_wants_is_given_back(tmp_path, loader_of):
    large = {"large": make_tiny_model("llama", tmp_path / "large", hidden_size=256, intermediate_size=1024)}
    before = mx.get_active_memory()
    loader = loader_of(large)
    whole = load(loader, "large", 0, 6, 6)
    held = mx.get_active_memory() - before
    part = load(loader, "large", 2, 4, 6)
    assert mx.get_active_memory() - before == pytest.approx(layer_bytes(model_of(part), 2, 3), rel=0.05)
    assert part.weights_bytes < whole.weights_bytes
    assert held > 3 * (mx.get_active_memory() - before)


def test_another_model_takes_the_place_of_the_one_before(loader_of):
    loader = loader_of()
    load(loader, "llama", 0, 3, 6)
    stages = load(loader, "qwen3", 0, 3, 6)
    assert stages.read_bytes == model_of(stages).weights.num_bytes
    assert loader.held == ("qwen3", (LayerRange(0, 3),))


def test_model_that_cannot_be_cut_is_loaded_whole_for_the_route_of_its_worker_alone(loader_of):
    stages = load(loader_of(), "llama", 0, 6, 6, full=True, uncut=True)
    assert list(stages.executors) == [Route(("own",))]
    assert Route(("own",)) in stages.chunk_costs


def test_worker_that_is_given_nothing_reads_nothing_and_gives_back_what_it_had(loader_of):
    loader, message = loader_of(), plan("llama", 0, 3, 6)
    stages = tuple(
        msgspec.structs.replace(stage, layers=NO_LAYERS) if stage.worker == "own" else stage for stage in message.stages
    )
    nothing = msgspec.structs.replace(message, stages=stages, pipeline=None)
    for _ in range(2):
        loaded = loader.load("own", nothing, lambda _: None)
        assert (loaded.executors, loaded.prefixes, loaded.read_bytes) == ({}, (), 0)
        assert loaded.vocabulary_size == model_of(load(loader_of(), "llama", 0, 3, 6)).vocabulary_size
        assert loader.held == ("llama", ())
        assert load(loader, "llama", 0, 3, 6).read_bytes > 0


def test_layers_prepared_in_advance_are_not_read_again(loader_of):
    loader = loader_of()
    first = load(loader, "llama", 0, 3, 6)
    told = []
    read_bytes = loader.prepare(PrepareStage(model="llama", layers=LayerRange(3, 5), reply_to=NOWHERE), told.append)
    assert read_bytes == layer_bytes(model_of(first), 3, 4)
    assert told == sorted(told)
    assert told[-1] == model_of(first).weights.num_bytes
    assert loader.held == ("llama", (LayerRange(0, 5),))
    grown = load(loader, "llama", 0, 5, 6)
    assert grown.read_bytes == 0
    assert model_of(grown) is model_of(first)


def test_preparing_reads_the_ends_of_the_model_too_and_needs_no_plan_before(loader_of):
    loader = loader_of()
    read_bytes = loader.prepare(
        PrepareStage(model="gemma3_text", layers=LayerRange(4, 6), reply_to=NOWHERE), lambda _: None
    )
    stages = load(loader, "gemma3_text", 4, 6, 6)
    assert stages.read_bytes == 0
    assert model_of(stages).weights.num_bytes == read_bytes


def test_preparing_another_model_than_the_one_in_use_is_refused(loader_of):
    loader = loader_of()
    load(loader, "llama", 0, 3, 6)
    with pytest.raises(ModelError, match="another model is in use"):
        loader.prepare(PrepareStage(model="qwen3", layers=LayerRange(0, 3), reply_to=NOWHERE), lambda _: None)
    assert load(loader, "llama", 0, 3, 6).read_bytes == 0


def test_refused_kind_of_cache_leaves_the_weights_for_the_next_plan(loader_of):
    loader = loader_of()
    load(loader, "mamba2", 0, 3, 6)
    with pytest.raises(ModelError, match="keys-only"):
        load(loader, "mamba2", 0, 3, 6, kv=KvSettings(kind="keys-only"))
    assert load(loader, "mamba2", 0, 3, 6).read_bytes == 0


def test_weights_that_cannot_be_read_leave_the_loader_usable(models, loader_of, monkeypatch):
    loader = loader_of()
    load(loader, "llama", 0, 3, 6)

    def fail(*_):
        raise RuntimeError("the disk is gone")

    with monkeypatch.context() as failing:
        failing.setattr(SplitModel, "read", fail)
        with pytest.raises(RuntimeError, match="the disk is gone"):
            load(loader, "llama", 0, 4, 6)
    assert loader.held == (None, ())
    assert load(loader, "llama", 0, 4, 6).read_bytes > 0


def test_model_that_is_not_here_leaves_the_loader_as_it_was(loader_of):
    loader = loader_of()
    load(loader, "llama", 0, 3, 6)
    with pytest.raises(ModelError):
        load(loader, "unheard of", 0, 3, 6)
    assert load(loader, "llama", 0, 3, 6).read_bytes == 0


def damage(file, tensor, value):
    """Overwrite the first number of a float32 tensor."""
    header_bytes = int.from_bytes(file.read_bytes()[:8], "little")
    start = json.loads(file.read_bytes()[8 : 8 + header_bytes])[tensor]["data_offsets"][0]
    with file.open("r+b") as opened:
        opened.seek(8 + header_bytes + start)
        opened.write(struct.pack("<f", value))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("start", "stop"), [(0, 4), (2, 4), (2, 6)])
def test_stage_that_computes_no_numbers_is_refused_in_its_name_and_nothing_of_it_stays(
    value, start, stop, loader_of, tmp_path
):
    model = make_tiny_model("llama", tmp_path / "damaged")
    (file,) = model.glob("model*.safetensors")
    whole = file.read_bytes()
    damage(file, "model.layers.2.mlp.down_proj.weight", value)
    loader = loader_of({"damaged": model})
    assert load(loader, "damaged", 4, 6, 6).read_bytes > 0
    with pytest.raises(NoNumbers, match=rf"^own computes what is no number in layers {start} to {stop}: "):
        load(loader, "damaged", start, stop, 6)
    assert loader.held == (None, ())
    file.write_bytes(whole)
    assert load(loader, "damaged", start, stop, 6).read_bytes > 0
