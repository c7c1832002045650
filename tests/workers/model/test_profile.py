"""How fast stages are found to be: from steps that took what a test says, and from real ones whose seconds nobody looks at."""

from dataclasses import replace

import pytest

from protocol.values import KvSettings, LayerRange, Route
from tests.support.loaded_stages import load, loader_for
from tests.support.manual_clock import ManualClock
from tests.support.told_timer import ToldTimer
from workers.engine.executor import StagePlace, Uncached
from workers.model.layer_parts import LayerUnits
from workers.model.payload import arrays
from workers.model.profile import KeptProfiles, Profile
from workers.model.split_model import SplitModel
from workers.model.step_timing import ExecutorPlace, StepTimer, TriedStep
from workers.zoo import make_tiny_model

NUM_LAYERS = 6
ARCHITECTURES = ("llama", "gemma3_text", "mamba2", "qwen3_next", "qwen3_moe", "gpt2", "deepseek_v3")
KINDS = (
    KvSettings(kind="static", max_tokens=256),
    KvSettings(kind="rotating", max_tokens=64),
    KvSettings(kind="quantized", group_size=32),
    KvSettings(kind="paged"),
)


def place(start, end, kv=None):
    stage = StagePlace(LayerRange(start, end), is_last=end == NUM_LAYERS)
    return ExecutorPlace(stage, kv, last_position_only=True, uncached=Uncached.PLAIN)


WHOLE, FIRST, MIDDLE = place(0, NUM_LAYERS), place(0, 3), place(2, 4)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    made = {name: make_tiny_model(name, root / name) for name in ARCHITECTURES}
    return made | {"wide": make_tiny_model("llama", root / "wide", head_dim=32)}


@pytest.fixture
def profile_of(models, tmp_path):
    """A profile of a small model, measured by a timer."""
    layers = SplitModel.load(models["llama"]).layers

    def make(timer, *, digest="d", cuts=(1, 2, 3, 4, 5), context_tokens=4096, clock=None):
        kept = KeptProfiles(tmp_path / "profiles", digest)
        return Profile(timer, LayerUnits(layers, cuts), kept, context_tokens=context_tokens, now=clock or ManualClock())

    return make


def stages_tried(timer):
    """The ranges, in order, without repetitions."""
    return list(dict.fromkeys(tuple(tried_at.layers) for tried_at, _ in timer.tried))


# --- what comes of the seconds


@pytest.mark.parametrize("disturbed", [(), (0, 2, 14)])
def test_speed_of_a_stage_is_found_from_its_steps(profile_of, disturbed):
    profile = profile_of(ToldTimer(disturbed=disturbed))
    profile.take([FIRST], batches=True)
    found, told = profile.speeds[FIRST], ToldTimer
    fixed_s = told.OVERHEAD_S + 3 * told.LAYER_S
    assert found.decode == tuple((rows, pytest.approx(fixed_s + 3 * rows * told.ROW_S)) for rows in (1, 2, 4, 8))
    assert found.decode_context_s == pytest.approx(3 * told.CONTEXT_S)
    assert found.chunk.fixed_s == pytest.approx(fixed_s)
    assert found.chunk.token_s == pytest.approx(3 * told.TOKEN_S)
    assert found.chunk_context_s == pytest.approx(3 * told.CONTEXT_S)
    assert found.payload_bytes == 3000


@pytest.mark.parametrize("window", [64, 1000])
def test_what_the_context_adds_is_measured_behind_full_windows(profile_of, window):
    profile = profile_of(ToldTimer(window=window))
    profile.take([FIRST], batches=True)
    found = profile.speeds[FIRST]
    assert found.decode_context_s == pytest.approx(3 * ToldTimer.CONTEXT_S)
    assert found.chunk_context_s == pytest.approx(3 * ToldTimer.CONTEXT_S)


def test_steps_of_several_sequences_are_measured_only_where_they_share_steps(profile_of):
    timer = ToldTimer()
    profile = profile_of(timer)
    profile.take([FIRST], batches=False)
    assert {tried.rows for _, tried in timer.tried} == {1}
    assert [rows for rows, _ in profile.speeds[FIRST].decode] == [1]


@pytest.mark.parametrize(("context_tokens", "longest"), [(4096, 2048 + 64), (1024, 1024 - 64), (512, 512), (None, 512)])
def test_no_token_is_behind_the_last_place_of_the_model(profile_of, context_tokens, longest):
    timer = ToldTimer()
    profile_of(timer, context_tokens=context_tokens).take([WHOLE], batches=True)
    assert max(tried.context + tried.num_tokens for _, tried in timer.tried) == longest


def test_layers_are_foretold_that_were_never_run_together(profile_of):
    profile = profile_of(ToldTimer())
    profile.take([WHOLE, FIRST], batches=True)
    foretold = profile.layers.of(LayerRange(1, 5))
    told = ToldTimer()
    assert foretold.decode_s == pytest.approx(told(place(1, 5), TriedStep(1, 1, 16)))
    assert foretold.chunk_s == pytest.approx(told(place(1, 5), TriedStep(1, profile.layers.chunk_tokens)), rel=0.01)


def test_model_that_cannot_be_cut_is_measured_whole(profile_of):
    timer = ToldTimer()
    profile = profile_of(timer, cuts=())
    profile.take([WHOLE], batches=True)
    assert stages_tried(timer) == [(0, NUM_LAYERS)]
    assert profile.layers.of(LayerRange(0, NUM_LAYERS)) is not None


def test_chunks_are_measured_once(profile_of):
    timer = ToldTimer()
    profile = profile_of(timer)
    profile.take([FIRST], batches=True)
    tried = len(timer.tried)
    assert profile.chunk_cost(FIRST) == profile.speeds[FIRST].chunk
    assert len(timer.tried) == tried


def test_chunks_cost_is_measured_without_a_profile_and_scaled_for_another_range(profile_of):
    timer = ToldTimer()
    profile = profile_of(timer)
    one, two = profile.chunk_cost(FIRST), profile.chunk_cost(WHOLE)
    assert two.token_s == pytest.approx(2 * one.token_s)
    assert stages_tried(timer) == [(0, 3)]
    assert (profile.speeds, profile.layers) == ({}, None)


@pytest.mark.parametrize("was_profiled", [False, True])
def test_rank_s_part_is_foretold_from_what_is_in_memory_so_that_no_layer_is_read_for_it(profile_of, was_profiled):
    timer = ToldTimer()
    profile = profile_of(timer)
    if was_profiled:
        profile.take([MIDDLE, FIRST], batches=True)
        timer.tried.clear()
    part = profile.part_cost(WHOLE, 2, [MIDDLE, FIRST])
    assert stages_tried(timer) == ([] if was_profiled else [(0, 3)])
    own = profile.chunk_cost(FIRST)
    assert (part.fixed_s, part.token_s) == pytest.approx((own.fixed_s, own.token_s))  # twice the layers, half of each


# --- how long it takes


def test_slow_machine_measures_the_least_of_one_stage_and_foretells_the_other(profile_of):
    clock = ManualClock()
    timer = ToldTimer(clock=clock, scale=100)
    profile = profile_of(timer, clock=clock)
    profile.take([FIRST, WHOLE], batches=True)
    assert stages_tried(timer) == [(0, NUM_LAYERS)]
    assert sorted({tried.num_tokens for _, tried in timer.tried}) == [1, 16, 32]
    assert [rows for rows, _ in profile.speeds[WHOLE].decode] == [1, 4]
    assert profile.speeds[FIRST].chunk.token_s == pytest.approx(profile.speeds[WHOLE].chunk.token_s / 2, rel=0.2)
    assert profile.speeds[FIRST].payload_bytes == 3000


@pytest.mark.parametrize("scale", [1, 3, 10, 30])
def test_profile_takes_no_longer_than_people_wait(profile_of, scale):
    clock = ManualClock()
    profile = profile_of(ToldTimer(clock=clock, scale=scale), clock=clock)
    profile.take([FIRST, WHOLE], batches=True)
    assert clock.now < 3


def test_stage_of_a_later_plan_is_foretold_while_people_wait(profile_of):
    timer = ToldTimer()
    profile = profile_of(timer)
    profile.take([FIRST], batches=True)
    tried = len(timer.tried)
    profile.take([FIRST, MIDDLE], batches=True)
    assert len(timer.tried) == tried
    told = ToldTimer()
    assert profile.speeds[MIDDLE].decode_s(1, 16) == pytest.approx(told(MIDDLE, TriedStep(1, 1, 16)), rel=0.01)
    assert profile.speeds[MIDDLE].decode_context_s == pytest.approx(2 * told.CONTEXT_S)
    assert profile.speeds[MIDDLE].payload_bytes == 4000


# --- what is kept


def test_next_start_measures_nothing_and_finds_the_same(profile_of):
    first = profile_of(ToldTimer())
    first.take([WHOLE, FIRST], batches=True)
    timer = ToldTimer(scale=9)
    second = profile_of(timer)
    second.take([WHOLE, FIRST], batches=True)
    assert timer.tried == []
    assert second.speeds == first.speeds
    assert second.layers == first.layers


@pytest.mark.parametrize("damage", [b"", b"{", b'{"decode": 5}', b"\xff" * 100])
def test_damaged_file_is_measured_anew(profile_of, tmp_path, damage):
    profile_of(ToldTimer()).take([WHOLE], batches=True)
    files = list((tmp_path / "profiles").iterdir())
    assert len(files) == 2
    for file in files:
        file.write_bytes(damage)
    timer = ToldTimer()
    profile = profile_of(timer)
    profile.take([WHOLE], batches=True)
    assert timer.tried
    assert profile.speeds[WHOLE].decode_s(1, 0) == pytest.approx(
        ToldTimer.OVERHEAD_S + 6 * (ToldTimer.LAYER_S + ToldTimer.ROW_S)
    )


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "another"},
        {"place": replace(WHOLE, kv=KvSettings(kind="paged"))},
        {"place": FIRST},
        {"batches": False},
        {"version": "0.0"},
        {"host": "elsewhere"},
    ],
)
def test_another_model_stage_kind_of_cache_machine_or_mlx_is_measured_by_itself(profile_of, monkeypatch, change):
    profile_of(ToldTimer()).take([WHOLE], batches=True)
    if "version" in change:
        monkeypatch.setattr("workers.model.profile.installed_version", lambda _: change["version"])
    if "host" in change:
        monkeypatch.setattr("workers.model.profile.this_host", lambda: change["host"])
    timer = ToldTimer()
    profile = profile_of(timer, digest=change.get("digest", "d"))
    profile.take([change.get("place", WHOLE)], batches=change.get("batches", True))
    assert any(tried.num_tokens == 1 for _, tried in timer.tried)


def test_folder_that_cannot_be_written_costs_nothing_but_measuring_again(profile_of, tmp_path):
    (tmp_path / "profiles").write_bytes(b"a file")
    profile = profile_of(ToldTimer())
    profile.take([WHOLE], batches=True)
    assert WHOLE in profile.speeds


# --- real steps


def timer_of(path, layers):
    model = SplitModel.load(path)
    model.warm_up(layers)
    return model, StepTimer(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layers", [(0, 3), (2, 4), (3, 6), (0, 6)])
def test_every_stage_of_every_kind_of_model_can_be_timed(models, architecture, layers):
    model, timer = timer_of(models[architecture], LayerRange(*layers))
    for tried in (TriedStep(1, 16), TriedStep(1, 1, 8), TriedStep(3, 1, 8), TriedStep(1, 16, 24)):
        assert timer(place(*layers), tried) > 0
    assert model.weights.held_layers() == list(range(*layers))


@pytest.mark.parametrize("kv", KINDS, ids=lambda kv: kv.kind)
@pytest.mark.parametrize("layers", [(0, 6), (2, 4)])
def test_every_kind_of_cache_can_be_timed(models, kv, layers):
    _, timer = timer_of(models["wide"], LayerRange(*layers))
    for tried in (TriedStep(1, 16), TriedStep(1, 1, 100), TriedStep(1, 16, 100)):
        assert timer(place(*layers, kv), tried) > 0


def test_sequences_begin_with_as_many_tokens_as_are_asked_for(models, monkeypatch):
    _, timer = timer_of(models["llama"], LayerRange(0, 3))
    seen = []
    run = SplitModel.forward

    def forward(self, tokens, *, cache, **options):
        if tokens.shape == (2, 1):
            seen.append([int(offset) for offset in cache.entries[0].offset.tolist()])
        return run(self, tokens, cache=cache, **options)

    monkeypatch.setattr(SplitModel, "forward", forward)
    timer(FIRST, TriedStep(2, 1, 40))
    assert seen[:2] == [[40, 40], [41, 41]]


@pytest.mark.parametrize(("architecture", "has_windows"), [("gemma3_text", True), ("llama", False), ("mamba2", False)])
def test_windows_are_known(models, architecture, has_windows):
    _, timer = timer_of(models[architecture], LayerRange(0, 6))
    assert (timer.window_tokens(LayerRange(0, 6)) > 0) == has_windows


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_payload_of_a_token_is_as_large_as_what_a_stage_hands_on(models, architecture):
    model, timer = timer_of(models[architecture], LayerRange(0, 3))
    handed_on = model.warm_up(LayerRange(0, 3))[1]
    assert timer.payload_bytes(LayerRange(0, 3)) == sum(array.nbytes for array in arrays(handed_on)) > 0
    assert timer.payload_bytes(LayerRange(3, 6)) == 0


def test_real_stages_have_speeds_and_so_has_every_split_of_the_model(models, tmp_path):
    model, timer = timer_of(models["llama"], LayerRange(0, 6))
    profile = Profile(timer, LayerUnits(model.layers, (1, 2, 3, 4, 5)), KeptProfiles(tmp_path, "d"), context_tokens=512)
    profile.take([WHOLE, FIRST], batches=True)
    assert all(speed.decode_s(1, 0) > 0 and speed.chunk_s(64, 0) > 0 for speed in profile.speeds.values())
    for start in range(6):
        foretold = profile.layers.of(LayerRange(start, start + 1))
        assert foretold.decode_s >= 0
        assert foretold.chunk_s >= 0


# --- with the loader


def test_loader_tells_speeds_only_where_it_is_asked_to(models, tmp_path):
    loader, pipeline = loader_for({"llama": models["llama"]}, tmp_path, ToldTimer), Route(("own", "behind"))
    plain = load(loader, "llama", 0, 3, NUM_LAYERS)
    assert [prefix.speed for prefix in plain.prefixes] == [None]
    assert plain.layers is None
    measured = load(loader, "llama", 0, 3, NUM_LAYERS, full=True, profile=True)
    assert [prefix.route for prefix in measured.prefixes] == [pipeline, Route(("own",))]
    assert all(prefix.speed is not None for prefix in measured.prefixes)
    assert measured.prefixes[0].speed.chunk == measured.chunk_costs[pipeline]
    assert len(measured.layers.decode_s) == NUM_LAYERS
    assert (tmp_path / "profiles").is_dir()


def test_model_whose_steps_fail_is_loaded_without_a_profile(models, tmp_path):
    class StrangeTimer(ToldTimer):
        def __call__(self, where, tried):
            if tried.num_tokens == 1:
                raise ValueError("this model is strange")
            return super().__call__(where, tried)

    loader = loader_for({"llama": models["llama"]}, tmp_path, StrangeTimer)
    stages = load(loader, "llama", 0, 3, NUM_LAYERS, profile=True)
    assert [prefix.speed for prefix in stages.prefixes] == [None]
    assert stages.layers is None
    assert stages.chunk_costs
