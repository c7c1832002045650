"""A worker and its cluster: how it is admitted, that it lives, and that it ends."""

import msgspec

from protocol.host_specs import HostSpecs
from protocol.messages.message import Message
from protocol.values import LayerRange, Peer, Route


class Join(Message, frozen=True, kw_only=True):
    """A worker asks to be admitted, or to be taken back after it lost the coordinator or was given up.

    The only message that a stranger may send. secret: proves that it was given the cluster's token; peer: where the
    coordinator reaches it; data: where other workers do, both with the key that sends this; model, held: the digest of the
    model that it has open and the layers whose weights it has read; num_losses: how often it lost the coordinator, so that
    a Join that was only sent again is known as such; about: its host.
    """

    protocol: int
    secret: str
    name: str
    host: str
    pid: int
    peer: Peer
    data: Peer
    memory_limit_bytes: int
    model: str | None = None
    held: tuple[LayerRange, ...] = ()
    num_losses: int = 0
    about: HostSpecs = HostSpecs()


class Welcome(Message, frozen=True, kw_only=True):
    """The worker is admitted. inbox: where the coordinator hears what its workers say from now on; door: where it lets in whom
    it has lost.
    """

    inbox: Peer
    door: Peer


class Rejected(Message, frozen=True, kw_only=True):
    """The worker is not admitted; it ends."""

    reason: str


class Leave(Message, frozen=True, kw_only=True):
    """A worker that joined from elsewhere ends, and is not to be missed."""

    worker: str


class Heartbeat(Message, frozen=True, kw_only=True):
    """Sent every 0.5 s. Bytes as MLX counts them. steps, rows and busy_s (seconds in steps) count from the start of the
    process; queued: messages that wait for the compute thread; prefix_bytes, disk_bytes: kept of past sequences;
    shared_bytes: of prefix_bytes, what running sequences began with; read_bytes: weights read since the process began.
    oldest_step_s: for how long the compute thread has been at what it does now, None when it is idle; overdue_s: how long
    that may take at most before the worker counts as hung. slowness: by how much longer its steps take than when it was measured;
    clock: its host's time, in seconds since 1970. sent_bytes: to each worker and the coordinator ("") over data links and between
    ranks, since the start of the process.
    """

    worker: str
    weights_bytes: int = 0
    kv_bytes: int = 0
    prefix_bytes: int = 0
    shared_bytes: int = 0
    disk_bytes: int = 0
    running: int = 0
    queued: int = 0
    steps: int = 0
    rows: int = 0
    busy_s: float = 0.0
    read_bytes: int = 0
    oldest_step_s: float | None = None
    overdue_s: float = 0.0
    slowness: float = 1.0
    clock: float = 0.0
    sent_bytes: dict[str, int] = msgspec.field(default_factory=dict)


class Shutdown(Message, frozen=True, kw_only=True):
    """End the process now. why: for whoever started it."""

    why: str = ""


class Beat(Message, frozen=True, kw_only=True):
    """The coordinator lives; sent every 0.5 s in the epoch in force. A worker that is not among `members` joins anew.
    keys: of the members, which may measure and fetch from each other. watches_steps: somebody looks at what they do when, for
    whom they record it until some seconds after the last Beat that says so.
    """

    members: tuple[str, ...]
    keys: tuple[str, ...] = ()
    watches_steps: bool = False


class StepsRecorded(Message, frozen=True, kw_only=True):
    """The steps that a worker ran since it last said so, while somebody looks: a StepReport in buffer 0. clock: as in Heartbeat."""

    worker: str
    clock: float


class LinkLost(Message, frozen=True, kw_only=True):
    """What `worker` sends to `peer` may be lost from now on: the connection closed, or a number is missing."""

    worker: str
    peer: str
    why: str


class LinkFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One address of worker `to`, from a worker's `interface` of that kind. None where it does not answer, or is not known."""

    to: str
    interface: str
    kind: str
    address: str
    round_trip_us: int | None
    bytes_per_s: int | None
    in_use: bool


class LinksMeasured(Message, frozen=True, kw_only=True):
    """What a worker found of its ways to others. move: whether links chosen anew would be faster: "now", where one became slow
    or failed, "idle" where another is better, "" for no.
    """

    worker: str
    links: tuple[LinkFigures, ...]
    move: str = ""


class StepOverdue(Message, frozen=True, kw_only=True):
    """A head waits for a step for longer than it ever should."""

    worker: str
    route: Route
    number: int
    seconds: float
