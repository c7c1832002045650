"""Mailboxes and links between processes, over ZeroMQ with CURVE: the only package that imports zmq.

Every process has one or more inboxes, bound PULL sockets that a thread each reads; it sends through one PUSH socket per
peer. Links are one-way, so each side's socket monitor tells at once when a peer is gone. There are two kinds of them:
control links (`ZmqOutbox`) connect again by themselves; data links (`DataLinks`) number their messages, live as long as an
epoch and break for good. A process has one key pair, for its inboxes and for what it sends: an inbox admits keys, not
whoever knows where it is, and knows of each message whose it is.

What sends belongs to the thread that sends with it: ZeroMQ sockets must not be shared between threads.
"""

from protocol.transport.addressing import ANY, LOOPBACK
from protocol.transport.admission import Admits
from protocol.transport.data_links import ZmqDataLinks
from protocol.transport.in_process import InProcessDataLinks, InProcessNetwork, InProcessOutbox
from protocol.transport.inbox import FOR_STRANGERS, ZmqInbox
from protocol.transport.keys import KeyPair
from protocol.transport.numbers import Arrival, LinkNumbers
from protocol.transport.outbox import ZmqOutbox
from protocol.transport.sending import DataLinks, Sender

__all__ = [
    "ANY",
    "FOR_STRANGERS",
    "LOOPBACK",
    "Admits",
    "Arrival",
    "DataLinks",
    "InProcessDataLinks",
    "InProcessNetwork",
    "InProcessOutbox",
    "KeyPair",
    "LinkNumbers",
    "Sender",
    "ZmqDataLinks",
    "ZmqInbox",
    "ZmqOutbox",
]
