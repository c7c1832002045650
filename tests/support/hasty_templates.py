"""`cluster.serving.template_process`, but each rendering has a second: `python -m tests.support.hasty_templates MODEL`."""

import sys
from pathlib import Path

from cluster.serving import template_process

if __name__ == "__main__":
    template_process.LIMIT_S = 1.0
    template_process.main(Path(sys.argv[1]))
