"""The real coordinator with workers that do no arithmetic: `python -m benchmarks.support.coordinator_alone --home HOME`."""

import sys

from cluster import coordinator

FAKE_WORKER = (sys.executable, "-m", "benchmarks.support.fake_stages")

if __name__ == "__main__":
    coordinator.run(FAKE_WORKER)
