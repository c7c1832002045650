"""The real coordinator with relays between its workers: `python -m benchmarks.support.coordinator_relayed --home HOME`."""

import sys

from cluster import coordinator

RELAYED_WORKER = (sys.executable, "-m", "benchmarks.support.relayed_worker")

if __name__ == "__main__":
    sys.exit(coordinator.main(RELAYED_WORKER))
