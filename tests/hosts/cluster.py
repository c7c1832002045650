"""A cluster over the hosts of a bed, brought up as people do it: `start` on one, a token, and its command pasted on the others."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from cluster.cli.client import Client, NoAnswer
from cluster.cli.showing import stopped_status
from tests.hosts.bed import Bed, OnHost
from tests.hosts.room import WIFI
from tests.hosts.tools import network_of
from tests.support.running_cluster import wait_until

# Limits against hanging for ever, no expectations.
COMMAND_LIMIT_S = 180.0
SETTLE_LIMIT_S = 120.0
FIRST = "a"
_URL = "http://127.0.0.1:8420"


class HostsCluster:
    """Its coordinator is on host a."""

    def __init__(self, bed: Bed):
        self.bed = bed
        self._commands: dict[str, list[str]] = {}

    def launch(self, host: str, *arguments: str) -> str:
        """What a command prints; it must succeed."""
        done = self.bed.run(
            host, str(self.bed.hosts[host].checkout / "launch.sh"), *arguments, timeout_s=COMMAND_LIMIT_S
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr}{self.logs()}"
        return done.stdout

    def start(self, *options: str) -> None:
        """With one worker on the first host."""
        self.launch(FIRST, "start", "--workers", "1", *options)

    def invite(self, *hosts: str, interface: str = WIFI) -> None:
        """Each pastes the command of a token of its own, that of the address which the first host has there."""
        address = self.bed.address(FIRST, interface)
        for host in hosts:
            commands = self.launch(FIRST, "token", "new").splitlines()
            command = next(each for each in commands if f"--join {address}:" in each)
            self._commands[host] = shlex.split(command[command.index("worker ") :])
            self.launch(host, *self._commands[host], "--background")

    def rejoin(self, host: str) -> None:
        """One that was let in comes back, without a token."""
        command = self._commands[host]
        at = command.index("--token")
        self.launch(host, *command[:at], *command[at + 2 :], "--background")

    def status(self) -> dict[str, Any]:
        """As `status --json` says."""
        done = self.bed.run(
            FIRST, str(self.bed.hosts[FIRST].checkout / "launch.sh"), "status", "--json", timeout_s=COMMAND_LIMIT_S
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def told_status(self) -> dict[str, Any]:
        """As the API says, without the process that a command is; that of a stopped cluster where none answers."""
        with network_of(self.bed.hosts[FIRST].pid):
            try:
                told: dict[str, Any] = Client(_URL).get("/status")
            except NoAnswer:
                return stopped_status()
        return told

    def await_status(self, holds: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The first status that is so."""

        def found() -> dict[str, Any] | None:
            status = self.told_status()
            return status if holds(status) else None

        try:
            right: dict[str, Any] = wait_until(found, what, SETTLE_LIMIT_S)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.status()}{self.logs()}") from None
        return right

    def await_parts(self, number: int) -> dict[str, Any]:
        """So many workers have layers."""
        return self.await_status(lambda status: num_parts(status) == number, f"{number} workers having layers")

    def await_cables(self) -> dict[str, Any]:
        """Every link in use is a cable."""

        def cabled(status: dict[str, Any]) -> bool:
            used = [link for link in status["links"] if link["in_use"]]
            pairs = num_parts(status) * (num_parts(status) - 1)
            return len(used) == pairs and all(link["interface"].startswith("tb-") for link in used)

        return self.await_status(cabled, "every link being a cable")

    def prompt(self, text: str, max_tokens: int, *options: str) -> dict[str, Any]:
        """As `prompt --json` says."""
        given = ("--max-tokens", str(max_tokens), "--temperature", "0", "--json")
        answer: dict[str, Any] = json.loads(self.launch(FIRST, "prompt", text, *given, *options))
        return answer

    def ask(self, **body: Any) -> OnHost:
        """A completion over all stages, asked for on the first host; the standard output is the answer, or its events."""
        asked = {"temperature": 0, "strategy": "distributed-cached"} | body
        command = (
            "curl",
            "-sN",
            f"{_URL}/v1/completions",
            "-H",
            "Content-Type: application/json",
            "-d",
            json.dumps(asked),
        )
        return self.bed.popen(FIRST, *command, stdout=-1, text=True)

    def sent_bytes(self) -> tuple[int, int]:
        """Bytes that all hosts have sent by their cables, and by wifi."""
        sent = [(name, both[1]) for host in self.bed.hosts for name, both in self.bed.counters(host).items()]
        cables, wifi = (sum(count for name, count in sent if name.startswith(kind)) for kind in ("tb-", WIFI))
        return cables, wifi

    def logs(self) -> str:
        """The ends of all log files of all hosts."""
        texts = []
        for host in self.bed.hosts.values():
            texts += [
                f"\n--- {host.name} {file.name}\n{file.read_text()[-1500:]}" for file in self._log_files(host.name)
            ]
        return "".join(texts)

    def log(self, host: str) -> str:
        """All that the processes of a host have logged."""
        return "".join(file.read_text() for file in self._log_files(host))

    def _log_files(self, name: str) -> list[Path]:
        host = self.bed.hosts[name]
        return sorted((host.outside(host.checkout) / ".tandem" / "logs").glob("*"))

    def stop(self) -> None:
        """On every host that anything runs on."""
        for name, host in self.bed.hosts.items():
            if psutil.Process(host.pid).children():
                self.launch(name, "stop")


def num_parts(status: dict[str, Any]) -> int:
    """How many workers have layers in a plan in force."""
    if status["state"] != "ready":
        return 0
    return sum(worker["layers"] is not None for worker in status["workers"])
