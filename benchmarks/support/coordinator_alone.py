"""The real coordinator with workers that do no arithmetic: `python -m benchmarks.support.coordinator_alone --home HOME`."""

import asyncio
import sys
from pathlib import Path

from cluster import coordinator
from cluster.membership.local import WorkerProcess
from cluster.planning import control
from protocol.home import Home
from protocol.values import Peer


class FakeWorkerProcess(WorkerProcess):
    """Starts `benchmarks.support.fake_stages` where a worker would be started."""

    @classmethod
    async def start(
        cls,
        name: str,
        *,
        home: Home,
        checkout: Path,
        coordinator: Peer,
        token: str,
        memory_limit_bytes: int,  # noqa: ARG003 - the fake has no memory to limit
    ) -> "FakeWorkerProcess":
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.support.fake_stages"),
            *("--name", name, "--join", coordinator.endpoint, "--home", str(home.root)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            cwd=checkout,
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(token.encode() + b"\n")
        return cls(name, process)


if __name__ == "__main__":
    control.WorkerProcess = FakeWorkerProcess  # type: ignore[misc]
    sys.exit(coordinator.main())
