"""Clusters of real processes, each in a home of its own, driven as a user does: by commands and over HTTP.

Whatever a test does, `close` leaves no process behind, and says so when it had to end one itself.
"""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

CHECKOUT = Path(__file__).resolve().parents[2]
# Limits against hanging for ever, on a machine that may be busy with other things; no expectations.
COMMAND_LIMIT_S = 300.0
# Looking takes time of the processors that what is waited for needs: after so much more of the time waited, within bounds.
_LOOK_AGAIN, _LEAST_PAUSE_S, _MOST_PAUSE_S = 0.1, 0.02, 0.25
SETTLE_LIMIT_S = 60.0


def free_port() -> int:
    """A port that nothing listens on now.

    Below the range from which systems give ports to outgoing connections: a test that stops a cluster and starts it
    again on its port must find it free, whatever runs beside it has connected to meanwhile.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = SETTLE_LIMIT_S) -> Any:
    """The first true result of `condition`. Raises AssertionError after `limit_s` seconds."""
    begun = time.monotonic()
    while not (result := condition()):
        waited = time.monotonic() - begun
        assert waited < limit_s, f"{what} did not happen within {limit_s:g} s"
        time.sleep(min(max(waited * _LOOK_AGAIN, _LEAST_PAUSE_S), _MOST_PAUSE_S))
    return result


def processes_of(home: Path) -> list[psutil.Process]:
    """Every living process that has this home in its command line."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and any(str(home) in argument for argument in process.info["cmdline"] or ())
    ]


def launcher() -> list[str]:
    """`launch.sh` where these tests run in the environment that it made; else what it would run, with this Python."""
    if Path(sys.prefix).resolve() == (CHECKOUT / ".venv").resolve():
        return ["/bin/bash", str(CHECKOUT / "launch.sh")]
    return [sys.executable, "-P", "-m", "cluster.cli"]


class RunningCluster:
    """A home, a port, and the commands on them; nothing runs until `start`. compiles: as a user's does, or as tests do."""

    def __init__(self, *, compiles: bool = False) -> None:
        self._ignored = {"USE_DISTRIBUTED_INFERENCE"} | ({"MLX_DISABLE_COMPILE"} if compiles else set())
        self._folder = tempfile.TemporaryDirectory(prefix="tandem-test-")
        self.home = Path(self._folder.name).resolve() / "home"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    # --- commands

    def command(
        self, *arguments: str, environment: dict[str, str] | None = None, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end. Its outputs are text; bytes that are not UTF-8 are escaped."""
        done = subprocess.run(
            [*launcher(), *arguments],
            cwd=self._folder.name,
            env=self.environment | (environment or {}),
            input=stdin,
            capture_output=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )
        out, err = (text.decode("utf-8", "backslashreplace") for text in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment without settings of a cluster, with this cluster's home, and kept to this machine."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("TANDEM_") and name not in self._ignored
        }
        return kept | {"TANDEM_HOME": str(self.home), "TANDEM_LISTEN": "127.0.0.1", "PYTHONPATH": str(CHECKOUT)}

    def start(self, model: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        """Start it with a model; it is ready afterwards."""
        done = self.command("start", "--port", str(self.port), "--model", str(model), *options, environment=environment)
        assert done.returncode == 0, done.stderr + self.logs()

    def stop(self) -> str:
        """Stop it; returns what the command said."""
        done = self.command("stop")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        """What `status --json` prints."""
        done = self.command("status", "--json")
        status = json.loads(done.stdout)
        assert done.returncode == (0 if status["state"] == "ready" else 3), done.stderr
        return status

    def ready_status(self) -> dict[str, Any] | None:
        """GET /status once the cluster is ready, else None."""
        with contextlib.suppress(httpx.HTTPError):
            status = self.api_status()
            return status if status["state"] == "ready" else None
        return None

    # --- HTTP

    def api_status(self) -> dict[str, Any]:
        """GET /status."""
        return httpx.get(f"{self.url}/status", timeout=10).json()

    def complete(self, prompt: str | list[int], max_tokens: int, **fields: Any) -> dict[str, Any]:
        """A raw completion; it must succeed."""
        answer = self.post("/v1/completions", {"prompt": prompt, "max_tokens": max_tokens} | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60)

    @contextlib.contextmanager
    def stream(self, prompt: str | list[int], max_tokens: int, **fields: Any) -> Iterator[Iterator[dict[str, Any]]]:
        """The JSON events of a streamed raw completion; leaving the block closes the connection."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "stream": True} | fields
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=60) as response:
            assert response.status_code == 200
            yield (
                json.loads(line.removeprefix("data: "))
                for line in response.iter_lines()
                if line.startswith("data: ") and line != "data: [DONE]"
            )

    # --- processes

    def worker_pids(self) -> dict[str, int]:
        """Worker name to pid, as /status says."""
        return {worker["name"]: worker["pid"] for worker in self.api_status()["workers"]}

    def processes(self) -> list[psutil.Process]:
        """Every living process of this cluster."""
        return processes_of(self.home)

    def assert_no_process_left(self) -> None:
        """Raises AssertionError naming what lives."""
        left = self.processes()
        assert not left, [process.info["cmdline"] for process in left]

    def logs(self) -> str:
        """The ends of all log files, for a failing test's message."""
        files = sorted((self.home / "logs").glob("*")) if self.home.is_dir() else []
        return "".join(f"\n--- {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def close(self) -> None:
        """End everything that runs. Raises AssertionError when `stop` left a process, after ending that too."""
        try:
            if self.processes():
                self.command("stop")
                self.assert_no_process_left()
        finally:
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self._folder.cleanup()
