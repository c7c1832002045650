"""From a model to loaded stages: what is asked of workers and what they answer."""

import msgspec

from protocol.messages.message import Message
from protocol.values import KvSettings, LayerRange, Peer, RankTransport, Route
from strategy.group_sums import GroupSums
from strategy.layer_speeds import LayerSpeeds
from strategy.memory import KvNeeds
from strategy.stage_speed import StageSpeed


class InspectModel(Message, frozen=True, kw_only=True):
    """Find out how the model's architecture can be cut. reply_to: where the coordinator hears its workers; sources: who may
    have the model, the likeliest first, for who has not; kv: the caches that it will run with, None where nobody asks what they take.
    ranks: numbers of workers that might compute it together.
    """

    model: str
    reply_to: Peer
    kv: KvSettings | None = None
    sources: tuple[Peer, ...] = ()
    ranks: tuple[int, ...] = ()


class RankCut(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is cut for so many ranks. plan: as `workers.tensor` writes and reads it; shares: of the layers' weights that each
    rank holds; why_not: a clause where it cannot be cut so.
    """

    ranks: int
    plan: str = ""
    shares: tuple[float, ...] = ()
    why_not: str | None = None


class Inspected(Message, frozen=True, kw_only=True):
    """What a dry run of the model's architecture found; see `workers.model.inspection`. caches: what each layer's take for one
    sequence, () where that is not asked, or not known before it is loaded. rank_cuts: for each number of ranks that was asked for.
    """

    worker: str
    architecture: str
    num_layers: int
    legal_cuts: tuple[int, ...]
    why_not: str | None
    batches: bool
    last_position_only: bool
    context_tokens: int | None
    uncached_in_caches: bool = False
    whole_prompts: bool = False
    reads_together: bool = False
    caches: tuple[KvNeeds, ...] = ()
    embeds: bool = False
    rank_cuts: tuple[RankCut, ...] = ()


class Guessing(msgspec.Struct, frozen=True, kw_only=True):
    """Where guesses at the next tokens come from. draft: digest of a model that makes them; lookup: what a text repeats; neither:
    only what a request brings itself.
    """

    draft: str | None = None
    lookup: bool = False


class StagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a plan: the worker that holds it, where to reach that worker, and the layers."""

    worker: str
    peer: Peer
    layers: LayerRange
    holds_full_model: bool


class GroupPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Workers of a plan that compute the whole model together, each its part of the layers of its stage, beside what else they hold.

    layers: of each stage of the route; cut: the plan of its `RankCut`; secret: by which they know each other in this epoch, in
    hexadecimal digits; transport: of what they exchange.
    """

    route: Route
    layers: tuple[LayerRange, ...]
    cut: str
    secret: str
    transport: RankTransport = "tcp"

    def layers_of(self, worker: str) -> LayerRange:
        """Of which a worker has its part. Raises ValueError for one that is not of the group."""
        return self.layers[self.route.stage_of(worker)]


class LoadStage(Message, frozen=True, kw_only=True):
    """The plan whose epoch the message carries: load what of it is missing here. The only message that raises an epoch.

    model: its digest; stages: every worker of the plan in order; pipeline: the route through all of them, None where the
    model cannot be cut; uncached_in_caches: passes without a KV cache run in caches that are thrown away, since the model
    computes something else without any; whole_prompts: a prompt runs in mlx-lm's own chunks, since others change what the
    model computes (so nothing of it can be reused either); reads_together: prompts of different lengths can be read in one step;
    streams_wait: running streams make no chunk of a prompt shorter; kv_copies: to how many neighbours finished KV blocks are copied;
    profile: measure how fast the stages run, too; guessing: None where no next tokens are guessed; reply_to: where the coordinator hears its workers; sources: as in InspectModel;
    groups: no worker is in two.
    """

    model: str
    reply_to: Peer
    kv: KvSettings
    prefix_memory_bytes: int
    prefix_disk_bytes: int
    stages: tuple[StagePlan, ...]
    pipeline: Route | None
    last_position_only: bool
    batches: bool
    prefill_chunk_tokens: int | None
    uncached_in_caches: bool = False
    whole_prompts: bool = False
    reads_together: bool = False
    streams_wait: bool = False
    kv_copies: int = 0
    profile: bool = False
    sources: tuple[Peer, ...] = ()
    groups: tuple[GroupPlan, ...] = ()
    guessing: Guessing | None = None


class LoadProgress(Message, frozen=True, kw_only=True):
    """Weights read so far, in bytes; sent after each layer. Before that, where they come from another host: how many came, of
    how many.
    """

    worker: str
    loaded_bytes: int
    fetched_bytes: int = 0
    wanted_bytes: int = 0


class KeptPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """A route's store on a stage, what its sequences need there, how fast they run, where that was measured, and on a group what its ranks
    exchange for them.
    """

    route: Route
    needs: KvNeeds
    speed: StageSpeed | None = None
    sums: GroupSums | None = None


class Loaded(Message, frozen=True, kw_only=True):
    """The stage (and the full model where planned) is in memory and has run once. read_bytes: of weights, since the worker's
    process began, as in Heartbeat; vocabulary_size: of the loaded weights, below which every token id lies; layers: what each
    takes here, where that was measured; draft: what a sequence takes in the draft model, where one guesses here; unmet: where the ranks of
    its group did not meet, so that it has no part of it: a clause that says who missed whom, empty where another rank knows.

    Buffers: for each of `prefixes` the keys that are there, in memory or on disk (16 bytes each, least recently used first) and their
    numbers of tokens (int32).
    """

    worker: str
    weights_bytes: int
    vocabulary_size: int
    read_bytes: int = 0
    prefixes: tuple[KeptPrefix, ...] = ()
    layers: LayerSpeeds | None = None
    draft: KvNeeds | None = None
    unmet: str | None = None


class LoadFailed(Message, frozen=True, kw_only=True):
    """Inspecting or loading failed; `message` is one sentence for the user."""

    worker: str
    message: str


class KnownPrefix(Message, frozen=True, kw_only=True):
    """For the head of a route: what every stage of it still has from before, and how many parts to keep.

    Buffers: keys and numbers of tokens as in Loaded.
    """

    route: Route
    capacity: int
    snapshots: bool


class PrepareStage(Message, frozen=True, kw_only=True):
    """Read these weights in advance of a plan; nothing else changes, and what runs goes on. reply_to, sources: as in
    LoadStage.
    """

    model: str
    reply_to: Peer
    layers: LayerRange
    sources: tuple[Peer, ...] = ()


class Prepared(Message, frozen=True, kw_only=True):
    """The weights of PrepareStage are in memory."""

    worker: str
    layers: LayerRange
    read_bytes: int
