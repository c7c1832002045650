"""The entry of a worker process: `python -m workers --name NAME --join ENDPOINT --token TOKEN`."""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from protocol.errors import TandemError
from protocol.home import Home
from protocol.join_token import read_token
from protocol.logs import configure_logging
from protocol.values import Peer

_ON_INPUT = "-"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="workers", description="One worker of a Tandem cluster.")
    parser.add_argument("--name", required=True)
    parser.add_argument("--join", required=True, metavar="ENDPOINT", help="the coordinator's inbox, tcp://HOST:PORT")
    parser.add_argument("--token", required=True, help="what the coordinator printed; - reads it from standard input")
    parser.add_argument("--memory-limit", type=int, required=True, metavar="BYTES")
    parser.add_argument("--home", required=True)
    parser.add_argument(
        "--orphan-s", type=float, default=120.0, metavar="S", help="how long to live on without a coordinator"
    )
    return parser.parse_args()


def _token(given: str) -> str:
    return sys.stdin.readline().strip() if given == _ON_INPUT else given


def main() -> int:
    """Run one worker to its end."""
    arguments = _arguments()
    configure_logging(Home(Path(arguments.home)), arguments.name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        public_key, secret = read_token(_token(arguments.token))
    except TandemError as error:
        print(error, file=sys.stderr)
        return error.exit_code

    from workers.worker import Worker, WorkerOptions

    options = WorkerOptions(
        name=arguments.name,
        coordinator=Peer(endpoint=arguments.join, public_key=public_key),
        secret=secret,
        memory_limit_bytes=arguments.memory_limit,
        orphan_s=arguments.orphan_s,
        home=Home(Path(arguments.home)),
    )
    try:
        Worker(options).run()
    except Exception:
        logging.getLogger("workers").exception("the worker failed")
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    os._exit(status)  # threads that still wait for the network must not hold the process
