"""The `TensorGroup` of mx.distributed: sums over its `ring`, or over `jaccl` on Macs with RDMA.

A process can make one such group, once, and after a lost rank the next operation may never end. So the group stays for the life of the
process, from plan to plan, and a process whose group is of no use any more ends itself with a status by which it is started anew.
What mx.distributed does not do goes over the connections of a `TcpGroup`, whose ranks have proved who they are: whether all ranks
are at the same operation, where each of them hears, whether a try went well. Where it did not the `TcpGroup` is used instead.
"""

import logging
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx
import msgspec

from protocol.exits import BEGINS_ANEW
from protocol.transport.addressing import interface_to, own_networks
from workers.tensor.group import Carrier, GroupBroken
from workers.tensor.mlx_canary import why_not
from workers.tensor.mlx_files import (
    JACCL,
    RING,
    Ends,
    free_port,
    jaccl_environment,
    own_host,
    rdma_devices,
    ring_environment,
    ring_hosts,
)
from workers.tensor.tcp_group import TcpGroup

log = logging.getLogger(__name__)

EndProcess = Callable[[str], object]
# Ranks that have passed their canary begin in a moment.
_BEGIN_WITHIN_S = 20.0
# Once a rank gave up or is gone, an operation that takes longer waits for one that does not come.
_GRACE_S = 2.0
_LOOK_S = 0.5


class Shared(msgspec.Struct, kw_only=True):
    """The group of this process. about: its transport and ranks; life: which of all such groups; num_operations: so far."""

    about: str
    life: str
    group: Any
    num_operations: int = 0


class MlxGroup:
    """See the module. shared: of the process; control: to the same ranks, for this plan; end_process: called with why, does not return."""

    in_graph = True

    def __init__(self, shared: Shared, control: TcpGroup, end_process: EndProcess, carrier: Carrier):
        self.rank = control.rank
        self.size = control.size
        self.carrier = carrier
        self._shared = shared
        self._control = control
        self._end_process = end_process
        self._is_met = False
        self._is_closed = threading.Event()
        threading.Thread(target=self._watch, name="group", daemon=True).start()

    def __repr__(self) -> str:
        return f"MlxGroup(rank {self.rank} of {self.size}, {self._shared.about})"

    def sum(self, x: mx.array) -> mx.array:
        """See `TensorGroup`."""
        return self._run(mx.distributed.all_sum, x)

    def gather(self, x: mx.array, axis: int = -1, widths: Sequence[int] | None = None) -> mx.array:
        """See `TensorGroup`. Without widths over TCP, where they may be unequal."""
        if widths is None:
            return self._control.gather(x, axis)
        short = max(widths) - x.shape[axis]
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, short)
        found = self._run(mx.distributed.all_gather, mx.pad(x, padding)[None])
        parts = [mx.split(found[rank], [width], axis)[0] for rank, width in enumerate(widths)]
        return mx.concatenate(parts, axis=axis)

    def abort(self) -> None:
        """What is under way may end by itself, as it does where all ranks come to it; where they do not the process ends."""
        self._control.abort()

    def failed(self, error: Exception) -> None:
        """See `TensorGroup`. What mx.distributed raises is a RuntimeError, and its group is of no use then."""
        self.abort()
        if isinstance(error, RuntimeError):
            self._end_process(f"the group over {self._shared.about} is broken: {error}")
            raise GroupBroken(f"the tensor group over {self._shared.about} is broken: {error}") from error

    def close(self) -> None:
        """See `TensorGroup`. What belongs to the process stays."""
        self._is_closed.set()
        self._control.close()

    def _run(self, operation: Callable[..., mx.array], x: mx.array) -> mx.array:
        if not self._is_met:  # a rank may read its weights for long, until when nobody should be in an operation
            self._control.gather(mx.zeros(1))
            self._is_met = True
        self._shared.num_operations += 1
        return operation(mx.contiguous(x), group=self._shared.group)

    def _watch(self) -> None:
        """Until it is closed: nobody waits for ever for ranks that gave up or are gone. Which operations have ended is not known here."""
        seen, since = None, time.monotonic()
        while not self._is_closed.wait(_LOOK_S):
            now = time.monotonic()
            if not self._is_met or self._shared.num_operations != seen:
                seen, since = self._shared.num_operations, now
            elif now - since > _GRACE_S and self._control.has_ended:
                self._end_process(f"the group over {self._shared.about} waits for a rank that does not come")
                return


class Meeting(NamedTuple):
    """Ranks that have met. transport: what is wanted; names: of all ranks; ends: of the connection to each other one; control: to them;
    waiting: called now and then while something is waited for, and raises where that is of no use any more.
    """

    transport: str
    names: Sequence[str]
    ends: Mapping[int, Ends]
    control: TcpGroup
    waiting: Callable[[], object]


class MlxRanks:
    """Makes this process's group when it is first wanted. end_process: as of `MlxGroup`."""

    def __init__(self, end_process: EndProcess):
        self._end_process = end_process
        self._shared: Shared | None = None
        self._why_not: str | None = None

    def __repr__(self) -> str:
        return f"MlxRanks({self._shared or self._why_not})"

    def group(self, meeting: Meeting) -> TcpGroup | MlxGroup:
        """Of the ranks that have met; that of their connections where the transport does not work, which is tried once in a process.

        Raises:
            GroupBroken: a rank went, or another one has to begin anew.
            Whatever `waiting` raises.
        """
        about = f"{meeting.transport} of {'+'.join(meeting.names)}"
        shared = self._shared
        own = None if shared is None else [shared.about, shared.life, shared.num_operations]
        if own is not None and own[0] != about:
            self._end_process(f"it was in a group over {own[0]}, and is wanted for {about}")
        states = everyones(meeting.control, {"group": own, "why": self._why_not})
        if any(state["group"] != own for state in states):
            if own is not None:
                self._end_process(f"others of the group over {about} began anew")
            everyones(meeting.control, None)  # which those end who have to
            raise GroupBroken("another rank begins anew")
        if shared is None:
            self._why_not = next((state["why"] for state in states if state["why"]), None) or self._begin(
                meeting, about
            )
            shared = self._shared
        if shared is None:
            log.warning("%s exchange over tcp: %s", "+".join(meeting.names), self._why_not)
            meeting.control.carrier = Carrier("tcp", self._why_not)
            return meeting.control
        return MlxGroup(shared, meeting.control, self._end_process, Carrier(meeting.transport))

    def _begin(self, meeting: Meeting, about: str) -> str | None:
        """Have the group, or say why none of the ranks has it."""
        control, transport = meeting.control, meeting.transport
        with tempfile.TemporaryDirectory(prefix="tandem-group-") as folder:
            for action in (
                lambda environment: why_not(transport, control.size, environment, meeting.waiting),
                lambda environment: self._init(about, transport, environment),
            ):
                environment = _environment(meeting, Path(folder))
                found = environment if isinstance(environment, str) else action(environment)
                if why := next(filter(None, everyones(control, found)), None):
                    self._shared = None
                    return str(why)
        assert self._shared is not None
        self._shared.life = everyones(control, os.urandom(8).hex())[0]
        return None

    def _init(self, about: str, transport: str, environment: Mapping[str, str]) -> str | None:
        """In a thread, since nothing ends it where a rank does not come."""
        made: list[Any] = []

        def begin() -> None:
            try:
                made.append(mx.distributed.init(strict=True, backend=transport))
            except RuntimeError as error:
                log.warning("%s: %s", about, error)

        os.environ.update(environment)
        thread = threading.Thread(target=begin, name="group", daemon=True)
        thread.start()
        thread.join(_BEGIN_WITHIN_S)
        for name in environment:
            del os.environ[name]
        if not made:
            return f"{transport} did not begin in {_BEGIN_WITHIN_S:.0f} s, though a try went well"
        self._shared = Shared(about=about, life="", group=made[0])
        return None


def _environment(meeting: Meeting, folder: Path) -> dict[str, str] | str:
    """What mx.distributed is told, with ports of its own; a clause where this rank cannot say it. Asks all ranks the same, whatever it finds."""
    control, ends = meeting.control, meeting.ends
    host = own_host(control.rank, ends)
    ports = everyones(control, free_port(host))
    if meeting.transport == RING:
        return ring_environment(control.rank, ring_hosts(control.rank, ends, ports), folder)
    assert meeting.transport == JACCL, meeting.transport
    networks = own_networks()
    devices = rdma_devices(control.rank, {other: interface_to(each.there, networks) for other, each in ends.items()})
    rows = everyones(control, devices)
    if platform.system() != "Darwin":
        return "jaccl is for Macs with RDMA over Thunderbolt"
    coordinator = ends[0].there if control.rank else host
    return jaccl_environment(control.rank, rows, coordinator, ports[0], folder)


def everyones(control: TcpGroup, own: object) -> list[Any]:
    """What each rank says, by rank: anything that JSON holds. Raises GroupBroken."""
    said = control.gather(mx.array([*msgspec.json.encode(own), ord("\n")], mx.uint8))
    return [msgspec.json.decode(line) for line in bytes(cast("list[int]", said.tolist())).splitlines()]


def begin_anew(why: str) -> None:
    """End this process, so that it is started again."""
    log.error("begins anew: %s", why)
    logging.shutdown()
    os._exit(BEGINS_ANEW)
