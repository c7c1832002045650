"""A real worker whose data inbox the others reach only through a relay: `python -m benchmarks.support.relayed_worker`.

Takes a worker's arguments; see `benchmarks.support.relays`.
"""

import argparse
import logging
import os
from typing import Any
from urllib.parse import urlsplit

from benchmarks.support.relays import relayed_port
from protocol.transport import ZmqInbox
from protocol.values import Peer
from workers.__main__ import main


class RelayedInbox(ZmqInbox):
    """An inbox that says the relay's address instead of its own."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        port = urlsplit(self.peer.endpoint).port
        assert port is not None
        endpoint = f"tcp://127.0.0.1:{relayed_port(_own_name(), port)}"
        self.peer = Peer(endpoint=endpoint, public_key=self.peer.public_key)


def _own_name() -> str:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    name: str = parser.parse_known_args()[0].name
    return name


if __name__ == "__main__":
    status = main(data_inbox=RelayedInbox)
    logging.shutdown()
    os._exit(status)  # threads that still wait for the network must not hold the process
