"""How the processes of a tensor group find each other: a door at each, one connection for each pair, both ends of which prove that
they know the plan's secret.

The higher rank connects to the lower one. Whoever comes must say who it is within a moment, and waits for nobody else meanwhile;
strangers, and those of another plan, are sent away without a word. Knows nothing of models.
"""

import contextlib
import hmac
import logging
import os
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from protocol.errors import TandemError
from protocol.messages import GroupPlan
from protocol.transport.addressing import host_of
from protocol.transport.listening import listeners_at
from protocol.values import Peer
from workers.model.shelf import Overtaken
from workers.tensor.group import GroupBroken, NotMet, TensorGroup
from workers.tensor.mlx_files import Ends
from workers.tensor.mlx_group import EndProcess, Meeting, MlxRanks, begin_anew, everyones
from workers.tensor.tcp_group import Sent, TcpGroup

log = logging.getLogger(__name__)

# All ranks are told of their group at once, but one may still be at the end of something else. Its door hears all the same, so that
# who is not even reached need not be waited for so long. Everybody waits for the plan meanwhile.
MEET_WITHIN_S = 10.0
_REACH_WITHIN_S = 5.0
_SAY_WITHIN_S = 2.0
_AGAIN_AFTER_S = 0.1
_MOST_AT_ONCE = 64
_MAGIC = b"tandem-rank-1\n"
_NONCE_BYTES, _PROOF_BYTES, _RANK_BYTES = 16, 32, 2
_ACCEPTED = b"!"


class Call(NamedTuple):
    """A group as one of its ranks sees it before it meets: its rank, the name and address (None: nowhere) of each, and the secret."""

    rank: int
    names: Sequence[str]
    addresses: Sequence[tuple[str, int] | None]
    secret: bytes


class Door:
    """Where this process hears other ranks. listen: as of `ZmqInbox`. Raises AddressUnavailable."""

    def __init__(self, listen: Sequence[str]):
        self._listeners = listeners_at(listen)
        self.port: int = self._listeners[0].getsockname()[1]

    def __repr__(self) -> str:
        return f"Door({self.port})"

    def close(self) -> None:
        """Hear nobody any more."""
        for listener in self._listeners:
            listener.close()

    def came(self, within_s: float) -> list[socket.socket]:
        """Those who connected, in so many seconds at most; none where nobody did."""
        with selectors.DefaultSelector() as selector:
            for listener in self._listeners:
                selector.register(listener, selectors.EVENT_READ)
            found = []
            for key, _ in selector.select(within_s):
                with contextlib.suppress(OSError):  # gone again
                    found.append(key.fileobj.accept()[0])  # type: ignore[union-attr]
            return found


def meet(
    door: Door, call: Call, is_over: Callable[[], bool], now: Callable[[], float] = time.monotonic
) -> dict[int, socket.socket]:
    """A connection to each other rank. is_over: whether nobody needs the group any more.

    Raises:
        NotMet: somebody was not reached, or did not come, in time.
        Overtaken: it is over.
    """
    begun_at = now()
    found: dict[int, socket.socket] = {}

    def check() -> None:
        if is_over():
            raise Overtaken("something newer is wanted of this worker")

    try:
        for lower in range(call.rank):
            found[lower] = _come(call, lower, check, lambda: now() - begun_at)
        callers = _Callers(call)
        while len(found) < len(call.names) - 1:
            check()
            if now() - begun_at > MEET_WITHIN_S:
                missing = next(name for rank, name in enumerate(call.names) if rank != call.rank and rank not in found)
                raise NotMet(f"{missing} did not come to {call.names[call.rank]} in {MEET_WITHIN_S:.0f} s")
            callers.hear(door.came(_AGAIN_AFTER_S))
            for rank, connection in callers.proved():  # one that comes again gave up its connection before
                if rank in found:
                    found[rank].close()
                found[rank] = connection
    except (NotMet, Overtaken):
        for connection in found.values():
            connection.close()
        raise
    return found


def _come(call: Call, lower: int, check: Callable[[], object], waited_s: Callable[[], float]) -> socket.socket:
    """To a lower rank, again and again until it hears. waited_s: since the meeting began. Raises NotMet and what `check` raises."""
    address, own, name = call.addresses[lower], call.names[call.rank], call.names[lower]
    if address is None:
        raise NotMet(f"links.exclude of {own} leaves no address of {name}, with which it is to compute together")
    is_reached = False
    while True:
        check()
        try:
            connection = socket.create_connection(address, _SAY_WITHIN_S)
            is_reached = True
            return _proved(connection, call, lower, check)
        except OSError as error:
            log.debug("%s at %s is not the rank yet: %s", name, address, error)
            why = error.strerror or str(error)
        within_s = MEET_WITHIN_S if is_reached else _REACH_WITHIN_S
        if waited_s() > within_s:
            raise NotMet(f"{own} did not reach {name} at {address[0]}, port {address[1]}, in {within_s:.0f} s: {why}")
        time.sleep(_AGAIN_AFTER_S)


def _proved(connection: socket.socket, call: Call, lower: int, check: Callable[[], object]) -> socket.socket:
    """The connection, both ends of which are ranks; else it is closed. Raises OSError where the other end is none, or not yet, and what
    `check` raises.
    """
    try:
        nonce = os.urandom(_NONCE_BYTES)
        connection.sendall(_MAGIC + call.rank.to_bytes(_RANK_BYTES) + nonce)
        until = time.monotonic() + _SAY_WITHIN_S
        theirs = _exactly(connection, _NONCE_BYTES, until, check)
        if not hmac.compare_digest(
            _exactly(connection, _PROOF_BYTES, until, check), _proof(call, b"hears", lower, nonce, theirs)
        ):
            raise OSError("it does not know the secret")
        connection.sendall(_proof(call, b"comes", call.rank, nonce, theirs))
        if _exactly(connection, len(_ACCEPTED), until, check) != _ACCEPTED:
            raise OSError("it does not speak like a rank")
    except (OSError, TandemError):
        connection.close()
        raise
    connection.settimeout(None)
    return connection


class _Callers:
    """Those who connected and have not said yet who they are, each heard on a thread of its own."""

    def __init__(self, call: Call):
        self._call = call
        self._proved: queue.SimpleQueue[tuple[int, socket.socket]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def __repr__(self) -> str:
        return f"_Callers({len(self._threads)})"

    def hear(self, connections: Sequence[socket.socket]) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        for connection in connections:
            if len(self._threads) >= _MOST_AT_ONCE:
                connection.close()
                continue
            thread = threading.Thread(target=self._hear, args=(connection,), name="rank", daemon=True)
            self._threads.append(thread)
            thread.start()

    def proved(self) -> list[tuple[int, socket.socket]]:
        """Who did; where somebody is still being heard, after a moment at most."""
        found = []
        with contextlib.suppress(queue.Empty):
            if any(thread.is_alive() for thread in self._threads):
                found.append(self._proved.get(timeout=_AGAIN_AFTER_S))
            while True:
                found.append(self._proved.get_nowait())
        return found

    def _hear(self, connection: socket.socket) -> None:
        call, until = self._call, time.monotonic() + _SAY_WITHIN_S
        try:
            said = _exactly(connection, len(_MAGIC) + _RANK_BYTES + _NONCE_BYTES, until)
            magic, rank = said[: len(_MAGIC)], int.from_bytes(said[len(_MAGIC) : -_NONCE_BYTES])
            if magic != _MAGIC or not call.rank < rank < len(call.names):
                raise OSError("it does not speak like a rank")
            nonce, own = said[-_NONCE_BYTES:], os.urandom(_NONCE_BYTES)
            connection.sendall(own + _proof(call, b"hears", call.rank, nonce, own))
            if not hmac.compare_digest(
                _exactly(connection, _PROOF_BYTES, until), _proof(call, b"comes", rank, nonce, own)
            ):
                raise OSError("it does not know the secret")
            connection.sendall(_ACCEPTED)
        except OSError as error:
            log.warning("sent away who is no rank of the group: %s", error)
            connection.close()
        else:
            connection.settimeout(None)
            self._proved.put((rank, connection))


def _proof(call: Call, role: bytes, rank: int, nonce: bytes, answer: bytes) -> bytes:
    """That the end which says it, of this rank, knows the secret. nonce: of who connected; answer: the other's."""
    return hmac.digest(call.secret, role + rank.to_bytes(_RANK_BYTES) + nonce + answer, "sha256")


def _exactly(
    connection: socket.socket, num_bytes: int, until: float, check: Callable[[], object] = lambda: None
) -> bytes:
    """Raises OSError where they do not come in time, and what `check`, which is asked meanwhile, raises."""
    found = b""
    while len(found) < num_bytes:
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("it said nothing in time")
        check()
        connection.settimeout(min(left_s, _AGAIN_AFTER_S))
        try:
            part = connection.recv(num_bytes - len(found))
        except TimeoutError:
            continue
        if not part:
            raise ConnectionResetError("it went away")
        found += part
    return found


class RankDoor:
    """Meets the ranks of a worker's groups over TCP. listen: as of `ZmqInbox`; endpoint_of: where a worker of a plan is reached, None for
    nowhere; sent: as of `TcpGroup`; is_over, waiting: as of `Meet`; end_process: as of `MlxGroup`.
    """

    def __init__(
        self,
        listen: Sequence[str],
        endpoint_of: Callable[[Peer], str | None],
        sent: Sent,
        end_process: EndProcess = begin_anew,
    ):
        self._door = Door(listen)
        self._endpoint_of = endpoint_of
        self._sent = sent
        self._mlx = MlxRanks(end_process)

    def __repr__(self) -> str:
        return f"RankDoor({self._door})"

    @property
    def port(self) -> int:
        return self._door.port

    def __call__(
        self,
        plan: GroupPlan,
        name: str,
        peers: Mapping[str, Peer],
        is_over: Callable[[], bool],
        waiting: Callable[[], object],
    ) -> TensorGroup:
        """The ranks of this worker's stage in a group of a plan, once all of them are there. Raises NotMet, Overtaken and GroupBroken."""
        names = plan.route.together_with(name)
        addresses = [self._address(peers[each]) for each in names]
        call = Call(names.index(name), names, addresses, bytes.fromhex(plan.secret))
        others = meet(self._door, call, is_over)

        def check() -> None:
            waiting()
            if is_over():
                raise Overtaken("something newer is wanted of this worker")

        group = TcpGroup(call.rank, others, names, check, self._sent)
        try:
            _agree(group)
            if plan.transport == "tcp":
                return group
            ends = {rank: Ends.of(connection) for rank, connection in others.items()}
            return self._mlx.group(Meeting(plan.transport, names, ends, group, check))
        except TandemError:
            group.close()
            raise
        finally:
            group.waiting = waiting

    def _address(self, peer: Peer) -> tuple[str, int] | None:
        endpoint = self._endpoint_of(peer)
        return None if endpoint is None else (host_of(endpoint), peer.rank_port)


def _agree(group: TcpGroup) -> None:
    """Returns on all ranks, or on none: who missed somebody closes its connections instead. Raises NotMet."""
    try:
        everyones(group, None)
    except GroupBroken as error:
        raise NotMet from error
