"""Which layers are alike, and what each takes by what ranges of them took."""

import pytest

from protocol.values import LayerRange
from strategy.layer_speeds import PartSpeed
from workers.model.layer_parts import LayerUnits
from workers.model.split_model import SplitModel
from workers.zoo import make_tiny_model

OVERHEAD_S, EMBEDDING_S, HEAD_S = 0.5, 0.25, 4.0
EVERYWHERE = (1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    names = ("llama", "qwen3_next", "deepseek_v3")
    return {name: SplitModel.load(make_tiny_model(name, root / name)) for name in names}


def units_of(models, name, cuts=EVERYWHERE):
    return LayerUnits(models[name].layers, cuts)


def num_kinds(units):
    return len({units.kind_of[unit] for unit in units.all})


def took(units, layers, layer_s):
    """What a range takes of layers that take `layer_s` by their kind."""
    ends_s = (EMBEDDING_S if layers.start == 0 else 0) + (HEAD_S if layers.end == units.num_layers else 0)
    seconds = OVERHEAD_S + ends_s + sum(layer_s[units.kind_of[unit]] for unit in units.within(layers))
    return PartSpeed(seconds, 10 * seconds)


def speeds(units, held, layer_s):
    ranges = [*held, *units.to_measure(held)]
    return units.speeds([(layers, took(units, layers, layer_s)) for layers in ranges], 64)


def kinds_with_seconds(units):
    """Each kind takes twice as long as the one before."""
    kinds = list(dict.fromkeys(units.kind_of[unit] for unit in units.all))
    return {kind: 2.0**number for number, kind in enumerate(kinds)}


def test_layers_of_the_same_classes_and_shapes_are_of_one_kind(models):
    assert num_kinds(units_of(models, "llama")) == 1
    assert num_kinds(units_of(models, "qwen3_next")) > 1  # some with attention, some with a state
    assert num_kinds(units_of(models, "deepseek_v3")) > 1  # some with experts


def test_layers_between_two_cuts_run_together(models):
    units = units_of(models, "llama", (2, 5))
    assert units.all == (LayerRange(0, 2), LayerRange(2, 5), LayerRange(5, 6))
    assert num_kinds(units) == 3


def test_one_unit_of_each_kind_and_the_ends_of_the_model_are_measured_and_no_range_twice(models):
    units = units_of(models, "llama")
    assert units.to_measure([LayerRange(0, 6)]) == [LayerRange(1, 2), LayerRange(0, 1), LayerRange(5, 6)]
    assert units.to_measure([LayerRange(2, 4)]) == [LayerRange(2, 3)]
    assert units.to_measure([LayerRange(5, 6)]) == []


@pytest.mark.parametrize("name", ["llama", "qwen3_next", "deepseek_v3"])
def test_every_split_is_foretold_by_who_measured_the_full_model(models, name):
    units = units_of(models, name)
    layer_s = kinds_with_seconds(units)
    found = speeds(units, [LayerRange(0, 6)], layer_s)
    for start in range(6):
        for end in range(start + 1, 7):
            layers = LayerRange(start, end)
            wanted, foretold = took(units, layers, layer_s), found.of(layers)
            assert foretold.decode_s == pytest.approx(wanted.decode_s)
            assert foretold.chunk_s == pytest.approx(wanted.chunk_s)


def test_who_holds_the_middle_knows_all_layers_of_its_kinds_and_no_end(models):
    units = units_of(models, "llama")
    found = speeds(units, [LayerRange(2, 4)], kinds_with_seconds(units))
    assert found.decode_s == pytest.approx([1.0] * 6)
    assert (found.embedding, found.head) == (None, None)
    assert found.of(LayerRange(1, 5)).decode_s == pytest.approx(OVERHEAD_S + 4)
    assert found.of(LayerRange(0, 5)) is None


def test_layers_of_kinds_that_were_not_measured_are_not_known(models):
    units = units_of(models, "deepseek_v3")
    first = units.kind_of[LayerRange(0, 1)]
    found = speeds(units, [LayerRange(0, 1)], kinds_with_seconds(units))
    assert [seconds is not None for seconds in found.decode_s] == [units.kind_of[unit] == first for unit in units.all]


def test_unit_shares_what_it_takes_among_its_layers(models):
    units = units_of(models, "llama", (2, 5))
    found = speeds(units, [LayerRange(0, 6)], dict.fromkeys(units.kind_of.values(), 6.0))
    assert found.of(LayerRange(2, 5)).decode_s == pytest.approx(OVERHEAD_S + 6.0)
    assert len(set(found.decode_s[2:5])) == 1


def test_last_layer_takes_less_of_a_chunk_where_nobody_asks_for_its_output(models):
    units = units_of(models, "llama")

    def took(layers):
        seconds = 1.0 + 10 * (layers.end - layers.start) - (8 if layers.end == 6 else 0)
        return PartSpeed(seconds, seconds)

    whole = LayerRange(0, 6)
    found = units.speeds([(layers, took(layers)) for layers in (whole, *units.to_measure([whole]))], 64)
    assert found.chunk_s == pytest.approx([10.0] * 5 + [2.0])
    assert found.head == PartSpeed(0.0, 0.0)
    for layers in (whole, LayerRange(2, 6), LayerRange(1, 3)):
        assert found.of(layers).chunk_s == pytest.approx(took(layers).chunk_s)


def test_layers_that_are_faster_alone_than_among_others_are_believed_as_they_are_among_others(models):
    units = units_of(models, "llama")
    measured = [(LayerRange(0, 6), PartSpeed(12.0, 12.0)), (LayerRange(1, 2), PartSpeed(1.0, 1.0))]
    found = units.speeds(measured, 64)
    assert found.of(LayerRange(0, 6)).decode_s == pytest.approx(12.0, rel=0.1)
    assert all(part >= 0 for part in (*found.decode_s, found.overhead.decode_s, found.head.decode_s))
