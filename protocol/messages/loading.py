"""From a model to loaded stages: what is asked of workers and what they answer."""

import msgspec

from protocol.messages.message import Message
from protocol.values import KvSettings, LayerRange, Peer, Route
from strategy.memory import KvNeeds


class InspectModel(Message, frozen=True, kw_only=True):
    """Find out how the model's architecture can be cut."""

    model_path: str
    cache_dir: str


class Inspected(Message, frozen=True, kw_only=True):
    """What a dry run of the model's architecture found; see `workers.model.inspection`."""

    worker: str
    architecture: str
    num_layers: int
    legal_cuts: tuple[int, ...]
    why_not: str | None
    batches: bool
    last_position_only: bool
    context_tokens: int | None


class StagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a plan: the worker that holds it, where to reach that worker, and the layers."""

    worker: str
    peer: Peer
    layers: LayerRange
    holds_full_model: bool


class LoadStage(Message, frozen=True, kw_only=True):
    """Load one stage of the plan whose epoch the message carries; `stages` is the whole plan in order."""

    model_path: str
    cache_dir: str
    kv: KvSettings
    prefix_memory_bytes: int
    prefix_disk_bytes: int
    stages: tuple[StagePlan, ...]
    last_position_only: bool
    batches: bool
    prefill_chunk_tokens: int | None


class LoadProgress(Message, frozen=True, kw_only=True):
    """Weights read so far, in bytes; sent after each layer."""

    worker: str
    loaded_bytes: int


class KeptPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """A route's store on a stage, and what its sequences need there."""

    route: Route
    needs: KvNeeds


class Loaded(Message, frozen=True, kw_only=True):
    """The stage (and the full model where planned) is in memory and has run once.

    Buffers: for each of `prefixes` the keys that survived on disk (16 bytes each, least recently used first) and their
    numbers of tokens (int32).
    """

    worker: str
    weights_bytes: int
    prefixes: tuple[KeptPrefix, ...] = ()


class LoadFailed(Message, frozen=True, kw_only=True):
    """Inspecting or loading failed; `message` is one sentence for the user."""

    worker: str
    message: str


class KnownPrefix(Message, frozen=True, kw_only=True):
    """For the head of a route: what every stage of it still has from an earlier life, and how many parts to keep.

    Buffers: keys and numbers of tokens as in Loaded.
    """

    route: Route
    capacity: int
    snapshots: bool
