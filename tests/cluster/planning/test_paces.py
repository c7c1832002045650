"""Plans by how fast workers are: made so at once where that is known, replaced when nothing runs, and for a clear gain only."""

import msgspec

from cluster.planning.candidate import Candidate
from cluster.planning.deployment import BeginPlan, Deployment, EndPlan, SendPlan
from strategy.layer_speeds import LayerSpeeds, PartSpeed
from strategy.measured_partition import Pace
from strategy.stage_speed import Hop
from tests.cluster.planning.test_deployment import FOUND, SIZES

NUM_LAYERS = len(SIZES.layers)
SPEEDS = LayerSpeeds(
    decode_s=(0.001,) * NUM_LAYERS,
    chunk_s=(0.01,) * NUM_LAYERS,
    chunk_tokens=128,
    overhead=PartSpeed(1e-5, 1e-4),
    embedding=PartSpeed(1e-5, 1e-4),
    head=PartSpeed(1e-5, 1e-4),
)


def there(*names, room=2000, **slowness):
    """slowness: of those whose pace is known."""
    return {
        name: Candidate(
            name=name,
            memory_limit_bytes=room,
            pace=Pace(
                speeds=SPEEDS,
                slowness=slowness[name],
                hops={other: Hop(1e-4, 1e9) for other in names if other != name},
                payload_bytes=1000,
            )
            if name in slowness
            else None,
        )
        for name in names
    }


def serving(*names, room=2000):
    """By bytes, since nothing was measured yet."""
    deployment = Deployment(wanted=names)
    deployment.changed(there(*names, room=room), 0.0)
    (load,) = deployment.inspected(FOUND, SIZES, 0.0)
    begin(deployment, load)
    return deployment, load.partition


def begin(deployment, load):
    for stage in load.partition.stages:
        actions = deployment.loaded(stage.worker, (stage.layers,), 0.0, {})
    assert actions[0] == BeginPlan()


def width(partition, worker):
    (stage,) = [stage for stage in partition.stages if stage.worker == worker]
    return stage.layers.end - stage.layers.start


def test_worker_that_became_slower_loses_layers_when_nothing_runs():
    deployment, before = serving("a", "b", room=950)
    deployment.paced(there("a", "b", room=950, a=1.0, b=1.0))
    assert deployment.tick(1.0, is_idle=True) == []
    deployment.paced(there("a", "b", room=950, a=1.0, b=3.0))
    assert deployment.tick(2.0, is_idle=False) == []
    ended, load = deployment.tick(3.0, is_idle=True)
    assert (type(ended), type(load)) == (EndPlan, SendPlan)
    assert ended.loss.workers == ()
    assert width(load.partition, "b") < width(before, "b")
    begin(deployment, load)
    assert deployment.tick(4.0, is_idle=True) == []


def test_worker_that_recovers_gets_its_layers_back():
    deployment, _ = serving("a", "b", room=950)
    deployment.paced(there("a", "b", room=950, a=1.0, b=3.0))
    _, load = deployment.tick(1.0, is_idle=True)
    begin(deployment, load)
    deployment.paced(there("a", "b", room=950, a=1.0, b=1.0))
    _, again = deployment.tick(2.0, is_idle=True)
    assert width(again.partition, "b") > width(load.partition, "b")


def test_small_differences_and_unknown_paces_replace_no_plan():
    deployment, _ = serving("a", "b", room=950)
    for number, slow in enumerate([1.0, 1.04, 1.1, 0.95, 1.08]):
        deployment.paced(there("a", "b", room=950, a=1.0, b=slow))
        assert deployment.tick(float(number), is_idle=True) == []
    deployment.paced(there("a", "b", room=950, a=1.0))
    assert deployment.tick(9.0, is_idle=True) == []


def test_newcomer_is_planned_for_by_its_pace():
    deployment, _ = serving("a", "b")
    deployment.want(("a", "b", "c"))
    paces = there("a", "b", "c", a=1.0, b=1.0, c=2.5)
    (prepare,) = deployment.changed(paces, 10.0)
    assert prepare.worker == "c"
    (ended, load) = deployment.prepared("c", (prepare.layers,), 60.0, is_idle=True)
    assert type(ended) is EndPlan
    assert width(load.partition, "c") < width(load.partition, "a")


def test_worker_that_is_too_slow_for_the_pipeline_serves_alone():
    deployment, _ = serving("a", "b", "c")
    deployment.paced(there("a", "b", "c", a=1.0, b=1.0, c=50.0))
    _, load = deployment.tick(1.0, is_idle=True)
    assert set(load.partition.pipeline) == {"a", "b"}
    assert [stage.worker for stage in load.partition.stages if stage.worker not in load.partition.pipeline] == ["c"]


def test_paces_of_others_than_are_there_change_nothing():
    deployment, _ = serving("a", "b")
    paces = there("a", "b", a=1.0, b=5.0)
    deployment.paced({"a": paces["a"]})
    assert deployment.tick(1.0, is_idle=True) == []


def test_model_that_cannot_be_cut_is_planned_as_before():
    deployment = Deployment(wanted=("a", "b"))
    deployment.changed(there("a", "b", a=1.0, b=9.0), 0.0)
    uncut = msgspec.structs.replace(FOUND, why_not="a loop", legal_cuts=())
    (load,) = deployment.inspected(uncut, SIZES, 0.0)
    assert load.partition.pipeline is None
    begin(deployment, load)
    deployment.paced(there("a", "b", a=1.0, b=1.0))
    assert deployment.tick(1.0, is_idle=True) == []


def test_plan_whose_link_broke_is_made_again_as_it_was():
    deployment, _ = serving("a", "b", room=950)
    deployment.paced(there("a", "b", room=950, a=1.0, b=3.0))
    _, load = deployment.tick(1.0, is_idle=True)
    begin(deployment, load)
    ended, again = deployment.broken("a link broke", 10.0)
    assert (type(ended), again) == (EndPlan, load)
    deployment.changed(there("a", room=2000, a=1.0), 11.0, None, "b")
    assert deployment.state == "loading"
