"""A coordinator's process with workers of a benchmark's own kind, started without the command `start`."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping

import msgspec

from benchmarks.support.machine import CHECKOUT
from cluster.config import Settings
from protocol.home import Home

_END_LIMIT_S = 30
NOTHING: Mapping[str, str] = {}


@contextlib.contextmanager
def own_coordinator(
    module: str, home: Home, settings: Settings, environment: Mapping[str, str] = NOTHING
) -> Iterator[int]:
    """`python -m module --home HOME` until the block ends; its pid. module: one that runs `cluster.coordinator.main`.

    environment: what its environment and that of its workers holds besides. Raises RuntimeError when it does not start.
    """
    home.create()
    home.write_private(home.settings_file, msgspec.json.encode(settings))
    process = subprocess.Popen(
        [sys.executable, "-m", module, "--home", str(home.root)],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environment},
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        lines = process.stdout.read()  # ends when it is ready or has failed
        if b'"ready"' not in lines:
            raise RuntimeError(f"the coordinator did not start: {lines.decode(errors='replace')}")
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
