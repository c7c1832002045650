"""Stands in for the coordinator in tests of supervisor, `start` and `stop`: the same report, no model.

STUB says how it behaves, once per life where several words are given ("ready,die"; the last counts for all further
ones); STUB_WORKER is a pid to name as its worker in the state file.

- ready: ready, then serves until it is told to stop;  deaf: the same, but does not stop
- slow: never ready;  die: ends before it is ready;  error: tells an error, then ends with its code
- crash: ready, then ends with status 1
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from protocol.home import Home, ProcessIdentity, end_processes

STATUS = {
    "state": "ready",
    "api": "http://127.0.0.1:1",
    "model": {"id": "stub", "layers": 4, "bytes": 4_000_000},
    "mode": "auto",
    "policy": "thresholds",
    "coordinator": {"pid": os.getpid()},
    "workers": [
        {
            "name": "worker-0",
            "host": "local",
            "pid": 1,
            "state": "ready",
            "layers": [0, 4],
            "holds_full_model": True,
            "memory": {"limit_bytes": 1, "weights_bytes": 4_000_000, "kv_bytes": 0},
        }
    ],
    "requests": {"running": 0, "waiting": 0, "finished": 0, "failed": 0},
}


def say(**message) -> None:
    print(json.dumps(message), flush=True)


def behaviour(home: Home) -> str:
    """What this life of the coordinator is to be like; lives are counted in the home."""
    lives = home.root / "lives"
    number = len(lives.read_text()) if lives.exists() else 0
    lives.write_text("x" * (number + 1))
    words = os.environ["STUB"].split(",")
    return words[min(number, len(words) - 1)]


def name_itself(home: Home) -> None:
    me = ProcessIdentity.of(os.getpid())
    worker = os.environ.get("STUB_WORKER")
    workers = {"worker-0": ProcessIdentity.of(int(worker))} if worker else {}
    home.update_state(
        lambda state: msgspec.structs.replace(state, coordinator=me, workers=workers, api="http://127.0.0.1:1", port=1)
    )


def main() -> None:
    home = Home(Path(sys.argv[sys.argv.index("--home") + 1]))
    word = behaviour(home)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, signal.SIG_IGN if word == "deaf" else lambda number, _: stopped.append(number))
    name_itself(home)
    print("a library's chatter", flush=True)
    say(progress="loading", again="--again" in sys.argv)
    if word == "error":
        say(error="the model is damaged", exit_code=2)
        sys.exit(2)
    if word == "die":
        sys.exit(1)
    if word != "slow":
        say(ready=STATUS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if word == "crash":
        sys.exit(1)
    deadline = time.monotonic() + 120
    while not stopped and time.monotonic() < deadline:
        time.sleep(0.02)
    if stopped:
        end_processes(home.read_state().workers.values(), 5)
        home.clear_state(ProcessIdentity.of(os.getpid()))


main()
