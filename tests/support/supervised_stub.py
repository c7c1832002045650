"""The real supervisor over the stand-in coordinator: `python -m tests.support.supervised_stub --home HOME`."""

import sys

from cluster.supervisor import main

STUB = (sys.executable, "-m", "tests.support.stub_coordinator")

if __name__ == "__main__":
    sys.exit(main(STUB))
