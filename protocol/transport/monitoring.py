"""Tells when a socket's connection ends, from ZeroMQ's socket monitor. Does not know what the socket is for."""

import logging
import threading
from collections.abc import Callable

import zmq
from zmq.utils import monitor

log = logging.getLogger(__name__)


def watch_socket(socket: "zmq.Socket[bytes]", events: int, happened: Callable[[int], object]) -> None:
    """Call `happened` once, with the first of `events` that occurs, on a thread that ends when the monitor is disabled.

    Whoever closes the socket must disable its monitor first.
    """
    reader = socket.get_monitor_socket(events | zmq.EVENT_MONITOR_STOPPED)
    threading.Thread(target=_read, args=(reader, happened), name="link-monitor", daemon=True).start()


def _read(reader: "zmq.Socket[bytes]", happened: Callable[[int], object]) -> None:
    """Reads until the monitor is switched off: a monitor whose reader is gone would block whoever switches it off."""
    told = False
    try:
        while (event := monitor.recv_monitor_message(reader)["event"]) != zmq.EVENT_MONITOR_STOPPED:
            if not told:
                told = True
                _tell(happened, event)
    except zmq.ZMQError:
        return
    finally:
        reader.close(linger=0)


def _tell(happened: Callable[[int], object], event: int) -> None:
    try:
        happened(event)
    except Exception:  # the reader must go on, see _read
        log.exception("whoever watches a link failed")
