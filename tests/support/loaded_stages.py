"""One worker's loader and the plans it is given, without engine or coordinator."""

from types import SimpleNamespace

import mlx.core as mx

from protocol.messages import LoadStage, StagePlan
from protocol.values import KvSettings, LayerRange, Peer, Route
from workers.model.payload import arrays
from workers.model.shelf import ModelShelf
from workers.model.stage_loading import StageLoader

NOWHERE = Peer(endpoint="inproc://nowhere", public_key="")


def loader_for(places, cache_dir, make_timer=None):
    """A loader of the worker `own`. places: the directory of each model, by digest."""
    return StageLoader(ModelShelf(SimpleNamespace(model_place=places.get), cache_dir), make_timer)


def plan(
    model, start, stop, num_layers, *, full=False, uncut=False, disk=0, copies=0, memory=1 << 20, kv=None, profile=False
):
    """The worker `own` holds the layers [start, stop), others what is before and behind."""
    bounds = [("before", 0, start), ("own", start, stop), ("behind", stop, num_layers)]
    stages = tuple(
        StagePlan(worker=name, peer=NOWHERE, layers=LayerRange(first, end), holds_full_model=name == "own" and full)
        for name, first, end in bounds
        if first < end
    )
    return LoadStage(
        model=model,
        reply_to=NOWHERE,
        kv=kv or KvSettings(),
        prefix_memory_bytes=memory,
        prefix_disk_bytes=disk,
        stages=stages,
        pipeline=None if uncut else Route(tuple(stage.worker for stage in stages)),
        last_position_only=True,
        batches=True,
        prefill_chunk_tokens=None,
        kv_copies=copies,
        profile=profile,
    )


def load(loader, *arguments, **options):
    """Load `plan` of these arguments."""
    return loader.load("own", plan(*arguments, **options), lambda _: None)


def executor_of(stages):
    return next(iter(stages.executors.values()))


def model_of(stages):
    return executor_of(stages)._model


def ran(split, layers, tokens, cache, payload=None):
    """What a range makes of tokens, evaluated, as a payload."""
    output = split.forward(mx.array([tokens], mx.int32), layers=layers, cache=cache, payload=payload)
    split.evaluate(output, cache)
    return output


def same(ours, theirs):
    """Whether two payloads hold the same arrays, bit for bit."""
    pairs = zip(arrays(ours), arrays(theirs), strict=True)
    return all(mx.array_equal(a, b, equal_nan=True).item() for a, b in pairs)
