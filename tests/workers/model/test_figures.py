"""The figures of layers: the same on every machine, whatever else it holds, and others where a weight is another."""

import mlx.core as mx
import pytest
from mlx.utils import tree_map

from cluster.cli.verifying import EXACT_BOUND, HALF_BOUND, difference
from protocol.model_digest import model_digest
from protocol.values import LayerRange
from tests.support.damage import damaged_copy
from tests.support.weights_hosts import SourceHost, fetch, fetcher
from workers.model import figures
from workers.model.figures import own_figures, stage_figures
from workers.model.split_model import SplitModel
from workers.zoo import make_tiny_model

STAGES = (LayerRange(0, 3), LayerRange(3, 6))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def of(path, layers):
    return stage_figures(SplitModel.load(path), layers)


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe", "deepseek_v3", "mamba2"])
def test_layers_one_after_the_other_give_what_they_give_together(architecture, tmp_path, cache, monkeypatch):
    path = make_tiny_model(architecture, tmp_path / architecture)
    ranges = (LayerRange(0, 6), *STAGES)
    together = [of(path, layers) for layers in ranges]
    assert list(own_figures(path, ranges, cache)) == together
    monkeypatch.setattr(figures, "_HELD_BYTES", 0)
    assert list(own_figures(path, ranges, cache)) == together
    assert len({stage.rows for stage in together}) == len(ranges)


@pytest.mark.parametrize("layer", range(6))
def test_layer_that_is_damaged_shows_in_its_own_stage_and_in_no_other(llama, tmp_path, layer):
    copy = damaged_copy(llama, tmp_path / "copy", layer)
    assert model_digest(copy) == model_digest(llama)
    for stage in STAGES:
        apart = difference(of(copy, stage).rows, of(llama, stage).rows)
        assert apart > HALF_BOUND if layer in range(*stage) else apart == 0.0


def test_weights_that_are_absent_give_no_numbers(llama, tmp_path):
    host = SourceHost("a", llama)
    part = fetch(fetcher(tmp_path, host), model_digest(llama), [host], (0, 3))
    assert of(part, STAGES[0]) == of(llama, STAGES[0])
    assert not difference(of(part, STAGES[1]).rows, of(llama, STAGES[1]).rows) <= HALF_BOUND


def test_what_16_bits_round_away_lies_within_their_bound(llama):
    model = SplitModel.load(llama)
    model.model.update(tree_map(lambda array: array.astype(mx.bfloat16), model.model.parameters()))
    for stage in STAGES:
        rounded = stage_figures(model, stage)
        assert not rounded.is_exact
        assert EXACT_BOUND < difference(rounded.rows, of(llama, stage).rows) < HALF_BOUND
