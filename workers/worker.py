"""One worker process: joins the coordinator, beats, and runs the engine on the main thread.

A worker outlives a coordinator that dies for a while, so that one that is started again finds it; then it ends.
"""

import logging
import os
import socket
import threading
from dataclasses import dataclass

from protocol.codec import PROTOCOL, Envelope
from protocol.home import Home
from protocol.messages import Join, Rejected, Shutdown, Welcome
from protocol.transport import ZmqInbox, ZmqOutbox
from protocol.values import Peer
from workers.engine.compute_thread import put_compute_thread_in_batch_class
from workers.engine.engine import Engine
from workers.engine.trace import open_trace
from workers.model.shelf import ModelShelf

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.5
_EXIT_GRACE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """coordinator: its inbox; secret: the token's secret part; orphan_s: how long to live on without a coordinator."""

    name: str
    coordinator: Peer
    secret: str
    memory_limit_bytes: int
    orphan_s: float
    home: Home


class Worker:
    """Wires engine, inbox and heartbeat together."""

    def __init__(self, options: WorkerOptions):
        self._options = options
        self._engine = Engine(
            options.name,
            options.coordinator,
            ZmqOutbox(),
            ModelShelf(options.home, options.home.cache),
            open_trace(os.environ, options.name),
        )
        self._inbox = ZmqInbox(self._deliver)
        self._stopping = threading.Event()

    def __repr__(self) -> str:
        return f"Worker({self._options.name})"

    def run(self) -> None:
        """Join and work until told to stop."""
        put_compute_thread_in_batch_class()
        self._inbox.start()
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        self._engine.run()
        log.info("ended")

    def _deliver(self, envelope: Envelope) -> None:
        """On the inbox's thread."""
        match envelope.message:
            case Welcome():
                log.info("admitted")
            case Rejected(reason=reason):
                log.error("not admitted: %s", reason)
                self._end()
            case Shutdown():
                self._end()
            case _:
                self._engine.post(envelope)

    def _end(self) -> None:
        """Let the engine finish its step; end the process even if it does not."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._engine.post(Envelope(1 << 62, Shutdown()))
            timer = threading.Timer(_EXIT_GRACE_S, os._exit, (0,))
            timer.daemon = True
            timer.start()

    def _beat(self) -> None:
        options = self._options
        outbox = ZmqOutbox()
        join = Join(
            protocol=PROTOCOL,
            secret=options.secret,
            name=options.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            peer=self._inbox.peer,
            data=self._inbox.peer,
            memory_limit_bytes=options.memory_limit_bytes,
        )
        outbox.watch(options.coordinator, self._orphaned)
        outbox.send(options.coordinator, 0, join)
        while not self._stopping.wait(HEARTBEAT_S):
            outbox.send(options.coordinator, 0, self._engine.stats)
        outbox.close()

    def _orphaned(self) -> None:
        log.warning("the coordinator is gone")
        if not self._stopping.wait(self._options.orphan_s):
            self._end()
