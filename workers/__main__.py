"""The entry of a worker process: `python -m workers --name NAME --join ENDPOINT (--supervised | --token TOKEN)`."""

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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="workers", description="One worker of a Tandem cluster.")
    parser.add_argument("--name", required=True)
    parser.add_argument("--join", required=True, metavar="ENDPOINT", help="the coordinator's inbox, tcp://HOST:PORT")
    parser.add_argument(
        "--token", help="what the coordinator printed; with --supervised it is read from standard input"
    )
    parser.add_argument("--memory-limit", type=int, required=True, metavar="BYTES")
    parser.add_argument("--home", required=True)
    parser.add_argument("--supervised", action="store_true", help="end when standard input ends")
    return parser.parse_args()


def main() -> int:
    """Run one worker to its end."""
    arguments = _arguments()
    configure_logging(Home(Path(arguments.home)), arguments.name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        public_key, secret = read_token(sys.stdin.readline().strip() if arguments.supervised else arguments.token or "")
    except TandemError as error:
        print(error, file=sys.stderr)
        return error.exit_code

    from workers.worker import Worker, WorkerOptions

    options = WorkerOptions(
        name=arguments.name,
        coordinator=Peer(endpoint=arguments.join, public_key=public_key),
        secret=secret,
        memory_limit_bytes=arguments.memory_limit,
        supervised=arguments.supervised,
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
