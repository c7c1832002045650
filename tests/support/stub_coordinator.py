"""Stands in for the coordinator in tests of `start` and `stop`: the same protocol on stdout, no model.

STUB says how it behaves; STUB_WORKER is a pid to name as its worker in the state file.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from protocol.home import ClusterState, Home, ProcessIdentity

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


def main() -> None:
    behaviour = os.environ["STUB"]
    home = Home(Path(sys.argv[sys.argv.index("--home") + 1]))
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "deaf" else lambda *_: sys.exit(0))
    if worker := os.environ.get("STUB_WORKER"):
        me, workers = ProcessIdentity.of(os.getpid()), {"worker-0": ProcessIdentity.of(int(worker))}
        home.write_state(
            ClusterState(coordinator=me, api="http://127.0.0.1:1", port=1, workers=workers, started_at=time.time())
        )
    print("a library's chatter", flush=True)
    say(progress="loading")
    if behaviour == "error":
        say(error="the model is damaged", exit_code=2)
    elif behaviour not in ("die", "slow"):
        say(ready=STATUS)
    if behaviour != "die":
        time.sleep(60)


main()
