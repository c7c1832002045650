"""The real supervisor over the stand-in coordinator: `python -m tests.support.supervised_stub --home HOME`.

STUB_DELAY_S: its first wait for a coordinator that dies again and again, in place of the real one.
"""

import os
import sys

from cluster.membership import restarts
from cluster.supervisor import main

STUB = (sys.executable, "-m", "tests.support.stub_coordinator")

if __name__ == "__main__":
    restarts.FIRST_DELAY_S = float(os.environ.get("STUB_DELAY_S", restarts.FIRST_DELAY_S))
    sys.exit(main(STUB))
