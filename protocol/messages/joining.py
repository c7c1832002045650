"""A worker and its cluster: how it is admitted, that it lives, and that it ends."""

from protocol.messages.message import Message
from protocol.values import Peer


class Join(Message, frozen=True, kw_only=True):
    """A worker asks to be admitted. `secret` proves that it was given the cluster's token."""

    protocol: int
    secret: str
    name: str
    host: str
    pid: int
    peer: Peer
    memory_limit_bytes: int


class Welcome(Message, frozen=True, kw_only=True):
    """The worker is admitted."""

    coordinator: str


class Rejected(Message, frozen=True, kw_only=True):
    """The worker is not admitted; it ends."""

    reason: str


class Heartbeat(Message, frozen=True, kw_only=True):
    """Sent every 0.5 s. Bytes as MLX counts them. steps, rows and busy_s (seconds in steps) count from the start of the
    process; queued: messages that wait for the compute thread; prefix_bytes, disk_bytes: kept of past sequences;
    shared_bytes: of prefix_bytes, what running sequences began with.
    """

    worker: str
    weights_bytes: int
    kv_bytes: int
    prefix_bytes: int
    shared_bytes: int
    disk_bytes: int
    running: int
    queued: int
    steps: int
    rows: int
    busy_s: float


class Shutdown(Message, frozen=True, kw_only=True):
    """End the process now."""
