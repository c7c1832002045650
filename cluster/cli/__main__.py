"""`python -m cluster.cli`, which launch.sh runs."""

import sys

from cluster.cli.main import main

sys.exit(main(sys.argv[1:]))
