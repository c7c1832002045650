"""The settings of a cluster, each section a frozen struct: what a component is given, and only what it uses.

Owns names, types, defaults and how each type is described to people. Knows nothing of files, environment or flags; those
are `cluster.config`'s. Settings serialize to JSON and back with msgspec.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from protocol.interfaces.names import LinkNames
from protocol.log_lines import LogFormat
from protocol.values import NAME_PATTERN, Count, KvSettings, LayerRange, Natural, RankTransport
from strategy.wishes import Mode, Objective

Policy = Literal["thresholds", "measured"]
Scope = Literal["shared", "api-key"]
KvCopies = Literal[0, 1]

Port = Annotated[int, Meta(ge=1, le=65535, description="a port number from 1 to 65535")]
Seconds = Annotated[float, Meta(ge=0, le=86400, description="a number of seconds from 0 to 86400")]
SomeSeconds = Annotated[float, Meta(gt=0, le=86400, description="a number of seconds above 0, of 86400 at most")]
Bytes = Annotated[int, Meta(ge=1, description='a number of bytes or a size such as "12GB"')]
ManualLayers = Annotated[LayerRange, Meta(description="[start, end] with 0 <= start < end, end not included")]
Name = Annotated[str, Meta(pattern=f"^{NAME_PATTERN}$", description="letters, digits, dots, dashes, underscores")]
Few = Annotated[int, Meta(ge=1, le=64, description="a whole number from 1 to 64")]
SshAddress = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9:][A-Za-z0-9._:%-]{0,254}$", description="a host's name or address, without user or port"
    ),
]
SshUser = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$", description="a user's name, as ssh takes it")
]
Text = Annotated[str, Meta(min_length=1, description="a string that is not empty")]
GroupMembers = Annotated[tuple[Name, ...], Meta(min_length=2, description="a list of at least two names of workers")]
Ranks = Annotated[int, Meta(ge=2, description="an integer of at least 2")]
ApiKey = Annotated[
    str, Meta(pattern=r"^[!-~]{1,1024}$", description="1 to 1024 printable ASCII characters without spaces")
]
Listen = Annotated[
    Literal["all"] | tuple[Text, ...],
    Meta(description='"all", or a list of addresses of this machine'),
]
LinkNaming = Annotated[
    tuple[Text, ...],
    Meta(description='a list of addresses, networks such as "10.0.0.0/24" and interfaces such as "en0"'),
]
Draft = Annotated[
    str, Meta(min_length=1, description='"auto", "off", "lookup", or the directory or hub id of a draft model')
]
ModelName = Annotated[str, Meta(pattern=r"^\S{1,256}$", description="1 to 256 characters without spaces")]
ModelNames = Annotated[
    tuple[ModelName, ...], Meta(description='a list of names without spaces, among which "*" stands for any')
]
Switch = Annotated[bool, Meta(description="true or false")]


# Of a request, where only the number of them is asked for.
DEFAULT_CONTEXT_TOKENS = 4096


WebOrigins = Annotated[
    tuple[Annotated[str, Meta(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\sA-Z]{1,255})$")], ...],
    Meta(description='a list of origins such as "https://app.example" in lower case without a path, or ["*"]'),
]


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """path: an absolute directory in the Hugging Face layout, or a hub id; served_name: what clients call it, None for its own name."""

    path: Text
    served_name: ModelName | None = None


class KeySettings(msgspec.Struct, frozen=True, kw_only=True):
    """A key of the API beside `api.api_key`, and what may be asked for with it; None for as much as anybody.

    name: by which it is known where it is not shown; max_running: requests at once; tokens_per_minute: of prompts and answers.
    """

    name: Name
    key: ApiKey
    max_running: Count | None = None
    tokens_per_minute: Count | None = None


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the HTTP API listens, who may use it, and its limits.

    keys: further ones, each with a name; cors: pages of which origins may use it, "*" for any; aliases: further names of the model, "*" for any; max_queue: requests that may wait before further ones get status 429; request_timeout_s: how long a request may take,
    waiting included, None for as long as it needs; strict: fields without effect are refused, not noted; strict_model: so are
    other models' names.
    """

    host: Text = "127.0.0.1"
    port: Port = 8420
    api_key: ApiKey | None = None
    keys: tuple[KeySettings, ...] = ()
    aliases: ModelNames = ()
    cors: WebOrigins = ()
    max_queue: Count = 256
    request_timeout_s: SomeSeconds | None = None
    strict: Switch = False
    strict_model: Switch = False

    @property
    def asks_for_key(self) -> bool:
        return self.api_key is not None or bool(self.keys)


class StrategySettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a request's strategy is chosen; thresholds count tokens and are inclusive. objective: what policy measured makes least."""

    use_distributed_inference: Mode = Mode.AUTO
    policy: Policy = "thresholds"
    objective: Objective = Objective.TOTAL
    prompt_threshold: Natural = 100
    generation_threshold: Natural = 50

    @property
    def streams_wait(self) -> bool:
        """Whether running streams wait for others' prompts as long as it takes: when all have their answers is all that counts."""
        return self.policy == "measured" and self.objective is Objective.THROUGHPUT


class PlanSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan must have memory for, beside the weights: so many requests at once, prompt and answer of so many tokens each, or of
    the model's context where that is less. Neither: for caches of a tenth of the weights. More run where there is more.
    """

    context_tokens: Count | None = None
    requests: Count | None = None

    @property
    def is_asked(self) -> bool:
        return self != PlanSettings()

    @property
    def tokens(self) -> tuple[int, int]:
        """The requests, and the tokens of each."""
        return self.requests or 1, self.context_tokens or DEFAULT_CONTEXT_TOKENS


class KvCacheSettings(msgspec.Struct, frozen=True, kw_only=True):
    """kv: the cache of a running request, as the workers make it; adaptive: use one only where it was measured to pay.

    In the file the keys of `kv` stand beside `adaptive`.
    """

    kv: KvSettings = KvSettings()
    adaptive: Switch = False


class CacheSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept between requests; limits in bytes."""

    prefix: Switch = True
    memory_limit: Bytes | None = None
    disk_limit: Bytes | None = None
    scope: Scope = "shared"


class RecoverySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What happens when a worker or the coordinator is lost.

    wait_s: how long a request waits for a worker to come back while no plan can serve it; kv_copies: on how many further
    workers each finished block of KV is kept; orphan_s: how long workers hold the model without a coordinator.
    """

    wait_s: Seconds = 60.0
    kv_copies: KvCopies = 0
    orphan_s: Seconds = 120.0


class LinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How workers are reached from other hosts, and reach them. listen: at which addresses of this one; processes here always are.
    prefer: what workers here send to where it works, the best first; exclude: what is never listened at, announced or sent to.
    """

    listen: Listen = "all"
    prefer: LinkNaming = ()
    exclude: LinkNaming = ()

    @property
    def addresses(self) -> tuple[str, ...]:
        """What is listened at, as `ZmqInbox` takes it."""
        return ("*",) if self.listen == "all" else self.listen

    @property
    def names(self) -> LinkNames:
        """What is preferred and excluded."""
        return LinkNames(prefer=self.prefer, exclude=self.exclude)


class SpeculationSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Guesses at next tokens, which the model verifies several at a time. draft: who makes them, "auto" for the bundled draft of the
    bundled model, "off" for nobody, "lookup" for what texts repeat, or a model with the same tokenizer, as `model.path` is given.
    """

    draft: Draft = "auto"


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the workers compute.

    prefill_chunk: tokens in a chunk of a prompt, None to let each head choose by measured cost; trace: a file for a
    timeline of all that happens.
    """

    prefill_chunk: Count | None = None
    trace: Text | None = None


class LogSettings(msgspec.Struct, frozen=True, kw_only=True):
    """format: of the lines in the log files, text for people or a JSON object each."""

    format: LogFormat = "text"


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One worker. memory_limit: bytes; layers: a half-open manual range; None leaves either to the planner."""

    name: Name
    host: Text = "local"
    memory_limit: Bytes | None = None
    layers: ManualLayers | None = None


class HostSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Another machine, whose workers are started over ssh.

    address, user, port: as ssh takes them; checkout: the folder of Tandem there, from that user's home on; python: what makes
    its environment, None for the newest that is found; memory_limit: bytes for each of its workers.
    """

    name: Name
    address: SshAddress
    user: SshUser | None = None
    port: Port | None = None
    checkout: Text = "~/tandem"
    python: Text | None = None
    workers: Few = 1
    memory_limit: Bytes | None = None

    @property
    def worker_names(self) -> tuple[str, ...]:
        """The host's own name where it has one worker, else numbered."""
        return (self.name,) if self.workers == 1 else tuple(f"{self.name}-{index}" for index in range(self.workers))


class GroupSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Workers that compute every layer together, each its part of it, beside what else they do. The first decides what runs.

    ranks: how many compute a layer together, the workers behind them the next stage of layers; None for all. transport: of what they
    exchange; where it does not work they use tcp.
    """

    workers: GroupMembers = ()
    ranks: Ranks | None = None
    transport: RankTransport = "tcp"

    @property
    def num_ranks(self) -> int:
        return self.ranks or len(self.workers)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be configured, and what only `start` can be told. Serializes to JSON and back with msgspec.

    allow_mixed: workers with another patch level of mlx are let in.
    """

    model: ModelSettings
    api: ApiSettings = ApiSettings()
    strategy: StrategySettings = StrategySettings()
    plan: PlanSettings = PlanSettings()
    kv_cache: KvCacheSettings = KvCacheSettings()
    cache: CacheSettings = CacheSettings()
    recovery: RecoverySettings = RecoverySettings()
    links: LinkSettings = LinkSettings()
    speculation: SpeculationSettings = SpeculationSettings()
    engine: EngineSettings = EngineSettings()
    logs: LogSettings = LogSettings()
    workers: tuple[WorkerSettings, ...]
    hosts: tuple[HostSettings, ...] = ()
    groups: tuple[GroupSettings, ...] = ()
    allow_mixed: bool = False

    @property
    def group_ranks(self) -> tuple[int, ...]:
        """How many workers compute a layer together, in each group another number."""
        return tuple(sorted({group.num_ranks for group in self.groups}))
