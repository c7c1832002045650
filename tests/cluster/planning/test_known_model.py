"""What a plan must have room for, from what was asked, what a worker found and how memory is divided."""

import msgspec
import pytest

from cluster.planning.known_model import KnownModel
from cluster.settings import CacheSettings, ModelSettings, PlanSettings, Settings, WorkerSettings
from protocol.messages import Inspected
from strategy.memory import KvGrowth, KvNeeds, worker_budget
from workers.zoo import make_tiny_model

LAYERS = 6
CACHE = CacheSettings()
NEEDS = KvNeeds(fixed_bytes=100, growth=(KvGrowth(10, None),), snapshots=False)
FOUND = Inspected(
    worker="a",
    architecture="llama",
    num_layers=LAYERS,
    legal_cuts=(3,),
    why_not=None,
    batches=True,
    last_position_only=True,
    context_tokens=1024,
    caches=(NEEDS,) * LAYERS,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"), num_hidden_layers=LAYERS)


def sizes_of(path, plan, found=FOUND, cache=CACHE):
    settings = Settings(
        model=ModelSettings(path=str(path)), workers=(WorkerSettings(name="a"),), plan=plan, cache=cache
    )
    return KnownModel(path, "digest", settings).inspected(found).sizes


@pytest.mark.parametrize("cache", [CacheSettings(), CacheSettings(prefix=False), CacheSettings(memory_limit=10**6)])
def test_a_worker_with_exactly_what_is_needed_has_room_for_what_was_asked(path, cache):
    sizes = sizes_of(path, PlanSettings(context_tokens=512, requests=40), cache=cache)
    needed, weights = sizes.needed(0, LAYERS), sizes.stage(0, LAYERS)
    budget = worker_budget(
        limit_bytes=needed, weights_bytes=weights, prefix_limit=cache.memory_limit, prefix=cache.prefix
    )
    assert budget.sequence_bytes >= 40 * LAYERS * (100 + 512 * 10)
    assert "40 requests of 512 tokens each" in sizes.told(0, LAYERS)


def test_more_than_the_models_context_is_not_planned_for(path):
    asked, most = (sizes_of(path, PlanSettings(context_tokens=tokens)) for tokens in (100_000, 1024))
    assert asked == most
    assert "a request of 1024 tokens" in asked.caches_of


def test_nothing_is_planned_that_was_not_asked_for_or_is_not_known(path):
    assert sizes_of(path, PlanSettings()).caches == ()
    unknown = msgspec.structs.replace(FOUND, caches=())
    assert sizes_of(path, PlanSettings(requests=4), unknown).caches == ()


def test_requests_alone_are_of_four_thousand_tokens(path):
    found = msgspec.structs.replace(FOUND, context_tokens=None)
    assert sizes_of(path, PlanSettings(requests=2), found).caches_of == "2 requests of 4096 tokens each"
