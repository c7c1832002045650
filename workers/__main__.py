"""The entry of a worker process: `python -m workers --name NAME --join ENDPOINT --memory-limit BYTES --home DIR [--token -]`.

The cluster's token is the first line of standard input (`--token -`) or TANDEM_TOKEN; never an argument, which every user of
the machine could read.
"""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from protocol.descriptors import allow_descriptors, limits_kept
from protocol.errors import TandemError
from protocol.home import Home
from protocol.interfaces.names import LinkNames
from protocol.join_token import read_token
from protocol.logs import configure_logging, say_on_terminal
from protocol.transport import LOOPBACK, KeyPair, ZmqInbox
from protocol.values import Peer
from workers.without_text import import_without_text

# Connections of strangers, which last until their handshake is overdue, take none that this worker needs.
_DESCRIPTORS = 8192


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="workers", description="One worker of a Tandem cluster.")
    parser.add_argument("--name", required=True)
    parser.add_argument("--join", required=True, metavar="ENDPOINT", help="the coordinator's inbox, tcp://HOST:PORT")
    parser.add_argument(
        "--token",
        dest="source",
        choices=["-"],
        help="read what the coordinator printed from standard input, not from TANDEM_TOKEN",
    )
    parser.add_argument("--memory-limit", type=int, required=True, metavar="BYTES")
    parser.add_argument("--home", required=True)
    parser.add_argument(
        "--orphan-s", type=float, default=120.0, metavar="S", help="how long to wait for a coordinator that is gone"
    )
    parser.add_argument(
        "--listen", action="append", metavar="ADDRESS", help="where others reach it; every address of this host with *"
    )
    parser.add_argument("--prefer", action="append", metavar="NAME", help="an address, network or interface to send by")
    parser.add_argument("--exclude", action="append", metavar="NAME", help="one not to listen at or send by")
    parser.add_argument("--models", action="append", type=Path, metavar="DIR", help="where to look for the model")
    parser.add_argument("--guest", action="store_true", help="by hand, from another host: ends when it is interrupted")
    parser.add_argument("--log-format", choices=["text", "json"], default="text")
    return parser.parse_args()


def main(data_inbox: type[ZmqInbox] = ZmqInbox) -> int:
    """Run one worker to its end. data_inbox: where other workers reach it."""
    arguments = _arguments()
    configure_logging(Home(Path(arguments.home)), arguments.name, arguments.log_format)
    if arguments.guest:
        say_on_terminal()
    allow_descriptors(_DESCRIPTORS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    token = sys.stdin.readline() if arguments.source == "-" else os.environ.pop("TANDEM_TOKEN", "")
    try:
        public_key, secret = read_token(token.strip(), may_lack_secret=arguments.guest)
    except TandemError as error:
        print(error, file=sys.stderr)
        return error.exit_code

    import_without_text()
    with limits_kept():
        from workers.wakefulness import stay_awake
        from workers.worker import WorkerOptions, run_worker

    options = WorkerOptions(
        name=arguments.name,
        coordinator=Peer(endpoint=arguments.join, public_key=public_key),
        secret=secret,
        memory_limit_bytes=arguments.memory_limit,
        listen=tuple(arguments.listen or [LOOPBACK]),
        names=LinkNames(prefer=tuple(arguments.prefer or ()), exclude=tuple(arguments.exclude or ())),
        orphan_s=arguments.orphan_s,
        home=Home(Path(arguments.home)),
        model_folders=tuple(arguments.models or ()),
        is_guest=arguments.guest,
    )
    stay_awake()
    try:
        run_worker(options, KeyPair.kept(options.home, arguments.name), data_inbox)
    except Exception:
        logging.getLogger("workers").exception("the worker failed")
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    os._exit(status)  # threads that still wait for the network must not hold the process
