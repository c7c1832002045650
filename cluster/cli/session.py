"""What every command needs to know: whose cluster, from which checkout, and how to reach it.

Knows the order of things (is one running, does it answer, must one be started) and nothing of options or output.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.cli.client import Client, NoAnswer
from cluster.cli.finding import started_settings
from cluster.cli.last_start import as_last
from cluster.cli.near_models import check_location
from cluster.cli.showing import stopped_status
from cluster.cli.starting import Started, Starter
from cluster.cli.stopping import read_state
from cluster.cli.terminal import Terminal, standard_terminal
from cluster.config import Flags, Resolved, load_settings
from cluster.settings import Settings
from protocol.errors import TandemError
from protocol.home import ClusterState, Home
from protocol.model_search import model_folders

CHECKOUT = Path(__file__).resolve().parents[2]
_SILENT_LIMIT_S = 600.0
_POLL_S = 0.1
_STATUS_LIMIT_S = 2.0


class ClusterDied(TandemError):
    """The cluster that ran has ended, and nobody starts it again."""


class Session:
    """One call of the command line: home, checkout, environment and terminal."""

    def __init__(self, terminal: Terminal, environment: Mapping[str, str] = os.environ, checkout: Path = CHECKOUT):
        self.terminal = terminal
        self.environment = environment
        self.checkout = checkout
        self.home = Home.from_environment(checkout, environment)
        self.starter = Starter(self.home, checkout, terminal)

    def __repr__(self) -> str:
        return f"Session({self.home!r})"

    def settings(self, config_file: Path | None = None, flags: Flags | None = None) -> Resolved:
        """The configuration that a `start` with this file and these flags would use; raises UsageError."""
        return load_settings(
            config_file,
            checkout=self.checkout,
            working_directory=Path.cwd(),
            environment=self.environment,
            flags=flags or Flags(),
        )

    def with_model(self, resolved: Resolved) -> Resolved:
        """The same; raises UsageError where its model is a directory that is not there."""
        check_location(resolved.settings.model.path, model_folders(self.checkout, self.environment), self.terminal)
        return resolved

    def client(self, state: ClusterState) -> Client:
        """The API of a running cluster, with the key from the environment or the first of what it was started with."""
        return Client(state.api, self.environment.get("TANDEM_API_KEY") or self._stored_key())

    def running_state(self) -> ClusterState | None:
        """The cluster whose coordinator lives or is about to be started again, or None."""
        state = read_state(self.home, self.terminal)
        return state if state is not None and (state.is_coordinated or state.is_supervised) else None

    def running_settings(self) -> Settings | None:
        """What the cluster was started with; None when that cannot be read."""
        return started_settings(self.home)

    def status(self) -> dict[str, Any]:
        """The cluster as it is now; never raises because of its state."""
        state = read_state(self.home, self.terminal)
        if state is None:
            return stopped_status()
        pid = None if state.coordinator is None else state.coordinator.pid
        if not (state.is_coordinated or state.is_supervised):
            return stopped_status(f"the coordinator (pid {pid}) died; `./launch.sh start` starts anew")
        try:
            status: dict[str, Any] = self.client(state).get("/status", timeout_s=_STATUS_LIMIT_S)
        except NoAnswer as error:
            doing = self.home.start_under_way()
            starting = doing is not None or not state.is_coordinated or "failed" in str(error)
            known = {"state": "starting" if starting else "degraded", "api": state.api, "coordinator": {"pid": pid}}
            return stopped_status(doing or None if starting else str(error)) | known
        return status

    def reach(self) -> tuple[Client, dict[str, Any]]:
        """A cluster that serves, and its status; where none runs it starts the last one again, at first the default.

        Raises:
            TandemError: it cannot be started or does not become ready.
        """
        state = self.running_state()
        if state is None:
            started: Started = self.starter.start(lambda: self.with_model(as_last(self.home, self.settings())))
            state = started.state
            if started.status is not None:
                self.terminal.note(f"tandem: started a cluster at {state.api}; `./launch.sh stop` ends it.")
        client = self.client(state)
        return client, self.await_status(client)

    def await_status(self, client: Client) -> dict[str, Any]:
        """The status of a cluster that may still be starting, or starting again; waits while it is.

        Raises:
            ClusterDied: it ended.
            NoAnswer: it lives and has not answered for ten minutes.
        """
        answered_at = time.monotonic()
        while True:
            try:
                status: dict[str, Any] = client.get("/status")
            except NoAnswer:
                if self.running_state() is None:
                    raise ClusterDied(f"the coordinator died; {self.home.logs} says why") from None
                doing = self.home.start_under_way()
                if doing is not None:  # which may download for hours
                    answered_at = time.monotonic()
                elif time.monotonic() - answered_at >= _SILENT_LIMIT_S:
                    raise
            else:
                answered_at, doing = time.monotonic(), None
                if status["state"] != "starting":
                    self.terminal.done()
                    return status
            self.terminal.progress(f"waiting until the cluster is ready{(doing and f': {doing}') or ''}")
            time.sleep(_POLL_S)

    def _stored_key(self) -> str | None:
        settings = self.running_settings()
        if settings is None:
            return None
        return settings.api.api_key or next((each.key for each in settings.api.keys), None)


def open_session() -> Session:
    """The one of a command that a person typed."""
    return Session(standard_terminal())
