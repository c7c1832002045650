"""Workers of other hosts over ssh, with a program in its place that answers as ssh and hosts do."""

import asyncio
import contextlib
import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster.membership.hosted import FILE, reachable
from cluster.membership.ssh import SshLauncher, SshTerms, end_left_behind
from cluster.membership.ssh_command import HostUnavailable, quoted_path, ssh_command, why_failed
from cluster.settings import HostSettings
from protocol.host_specs import read_host_specs
from protocol.values import Address, Peer
from tests.support.running_cluster import CHECKOUT, wait_until

LIMIT_S = 60.0
COORDINATOR = Peer(
    endpoint="tcp://127.0.0.1:9",
    public_key="k" * 40,
    host="elsewhere",
    addresses=(
        Address(endpoint="tcp://192.0.2.7:9", interface="en0"),
        Address(endpoint="tcp://198.51.100.7:9", interface="tb"),
    ),
)
# Runs what ssh would run there, as another user's shell with a folder of its own.
SSH = """#!/bin/sh
for last; do :; done
printf '%s\\n' "$*" >>"$SSH_FOLDER/calls"
[ -e "$SSH_FOLDER/down" ] && { cat "$SSH_FOLDER/down" >&2; exit 255; }
echo "Welcome to this host"
HOME=$SSH_FOLDER SSH_CONNECTION="198.51.100.7 1 198.51.100.8 22" exec sh -c "$last"
"""
# In place of the launcher: `hosted` with workers that only wait.
LAUNCHER = """#!/bin/sh
echo "tandem: first start: making it." >&2
[ "$1" = hosted ] && exec {python} serve.py
"""
SERVE = """import os, sys
from pathlib import Path
from cluster.cli import hosting
from cluster.cli.session import Session
from cluster.cli.terminal import standard_terminal

hosting.WORKER = (sys.executable, "-c", {worker!r})
hosting.serve(Session(standard_terminal(), {{**os.environ, "TANDEM_HOME": str(Path.cwd() / "home")}}))
"""
WORKER = "import sys; print(sys.argv[1:], sys.stdin.readline().strip(), flush=True); import time; time.sleep(120)"


class OtherHost:
    """A folder that plays another host, and the ssh to it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.checkout = folder / "my tandem"
        self.checkout.mkdir(parents=True)
        self.ssh = folder / "ssh"
        self.ssh.write_text(SSH.replace("$SSH_FOLDER", str(folder)))
        self.ssh.chmod(0o755)
        launcher = self.checkout / "launch.sh"
        launcher.write_text(LAUNCHER.format(python=sys.executable))
        (self.checkout / "serve.py").write_text(SERVE.format(worker=WORKER))
        launcher.chmod(0o755)
        self.settings = HostSettings(name="mac2", address="mac2.local", checkout="~/my tandem", memory_limit=123)

    @property
    def workers(self):
        file = self.checkout / "home" / FILE
        return {name: each["process"]["pid"] for name, each in json.loads(file.read_text()).items()}

    def go_down(self, said):
        (self.folder / "down").write_text(said)

    def come_up(self):
        (self.folder / "down").unlink()

    def said(self):
        return (self.checkout / "home" / "logs" / "mac2.out").read_text()

    def kill_workers(self):
        with contextlib.suppress(OSError):
            for pid in self.workers.values():
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()


@pytest.fixture
def other(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    other = OtherHost(tmp_path / "host")
    yield other
    other.kill_workers()


def launcher_to(other, told=None, *, is_new=True, allow_mixed=False, **changes):
    terms = SshTerms(
        orphan_s=7.5, about=read_host_specs(), tell=(told if told is not None else []).append, is_new=is_new,
        allow_mixed=allow_mixed, program=str(other.ssh),
    )  # fmt: skip
    host = HostSettings(**{name: getattr(other.settings, name) for name in HostSettings.__struct_fields__} | changes)
    return SshLauncher([host], terms)


async def start(launcher, name="mac2"):
    return await launcher.start(name, coordinator=COORDINATOR, token="sesame", memory_limit_bytes=123)


async def abandon(launcher):
    """As if the coordinator were killed."""
    link = launcher._links["mac2"]
    for task in link._tasks:
        task.cancel()
    link._process.kill()
    await link._process.wait()


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 2 * LIMIT_S))


def test_worker_starts_with_the_address_that_ssh_came_from_and_a_token_nobody_sees(other):
    told = []
    launcher = launcher_to(other, told)

    async def scenario():
        identity = await start(launcher)
        await asyncio.to_thread(wait_until, lambda: "sesame" in other.said(), "the token")
        words = psutil.Process(identity.pid).cmdline()
        given = dict(itertools.pairwise(words))
        assert (given["--join"], given["--memory-limit"]) == ("tcp://198.51.100.7:9", "123")
        assert (given["--orphan-s"], given["--listen"], given["--home"]) == ("7.5", "*", str(other.checkout / "home"))
        assert str(CHECKOUT / "models") in words
        assert "sesame" not in " ".join(words) + (other.folder / "calls").read_text()
        assert told == ["mac2: first start: making it."]
        assert launcher.identities == {"mac2": identity}
        assert not launcher.has_ended("mac2")
        await launcher.end(grace_s=0.1)
        assert not identity.alive()
        assert launcher.identities == {}

    run(scenario())


def test_end_of_a_worker_is_told_with_its_status_and_it_starts_again(other):
    launcher = launcher_to(other)

    async def scenario():
        ended = asyncio.Queue()
        launcher.ended = lambda *told: ended.put_nowait(told)
        for _ in range(2):
            await start(launcher)
            launcher.kill("mac2")
            assert await ended.get() == ("mac2", -9)
            assert launcher.has_ended("mac2")
        await launcher.end(grace_s=0.0)
        assert ended.empty()

    run(scenario())


def test_lost_connection_ends_no_worker_and_is_made_again(other):
    launcher = launcher_to(other)

    async def scenario():
        ended = asyncio.Queue()
        launcher.ended = lambda *told: ended.put_nowait(told)
        identity = await start(launcher)
        connections = [child for child in psutil.Process().children() if child.pid != identity.pid]
        for each in connections:
            each.kill()
        await asyncio.to_thread(wait_until, lambda: (other.folder / "calls").read_text().count("\n") == 2, "another")
        assert identity.alive()
        launcher.kill("mac2")
        while not launcher.has_ended("mac2"):
            launcher.kill("mac2")
            await asyncio.sleep(0.1)
        assert (await ended.get())[0] == "mac2"
        await launcher.end(grace_s=0.0)

    run(scenario())


def test_worker_that_ended_without_a_connection_is_told_of_by_the_next(other):
    launcher = launcher_to(other)

    async def scenario():
        ended = asyncio.Queue()
        launcher.ended = lambda *told: ended.put_nowait(told)
        identity = await start(launcher)
        other.go_down("ssh: connect to host mac2.local port 22: No route to host")
        for each in psutil.Process().children():
            if each.pid != identity.pid:
                each.kill()
        identity.kill()
        other.come_up()
        assert await ended.get() == ("mac2", None)
        await launcher.end(grace_s=0.0)

    run(scenario())


def test_next_coordinator_takes_a_worker_up_and_a_new_cluster_ends_it(other):
    async def left_behind(launcher):
        identity = await start(launcher)
        await abandon(launcher)
        return identity

    async def scenario():
        first = await left_behind(launcher_to(other))
        again = launcher_to(other, is_new=False)
        assert await start(again) == first
        await left_behind(again)
        anew = launcher_to(other)
        second = await start(anew)
        assert second != first
        assert not first.alive()
        await anew.end(grace_s=0.0)
        assert not second.alive()

    run(scenario())


def test_workers_that_a_coordinator_left_are_ended_without_another_one(other):
    async def scenario():
        launcher = launcher_to(other)
        identity = await start(launcher)
        await abandon(launcher)
        for cluster, num_ended in (("o" * 40, 0), (COORDINATOR.public_key, 1), (COORDINATOR.public_key, 0)):
            assert await end_left_behind(other.settings, cluster, str(other.ssh)) == num_ended
            assert identity.alive() == (cluster != COORDINATOR.public_key)
        other.go_down("ssh: connect to host mac2.local port 22: Connection refused")
        with pytest.raises(HostUnavailable, match="turn on Remote Login"):
            await end_left_behind(other.settings, COORDINATOR.public_key, str(other.ssh))

    run(scenario())


def test_worker_of_another_cluster_is_left_alone(other):
    async def scenario():
        mine, theirs = launcher_to(other), launcher_to(other)
        identity = await start(mine)
        stranger = Peer(endpoint=COORDINATOR.endpoint, public_key="o" * 40, addresses=COORDINATOR.addresses)
        with pytest.raises(HostUnavailable, match="of another cluster runs there"):
            await theirs.start("mac2", coordinator=stranger, token="t", memory_limit_bytes=1)
        await theirs.end(grace_s=0.0)
        assert identity.alive()
        await mine.end(grace_s=0.0)

    run(scenario())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"checkout": "~/elsewhere"}, "mac2 has no checkout of Tandem in ~/elsewhere"),
        ({"python": "~/no/python"}, "mac2 has no Python at ~/no/python"),
    ],
)
def test_what_a_host_lacks_is_one_clause(other, changes, why):
    async def scenario():
        with pytest.raises(HostUnavailable, match=why):
            await start(launcher_to(other, **changes))

    run(scenario())


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        ({"protocol": 1}, "another version of Tandem"),
        ({"free_bytes": 0}, "the disk of mac2 is full"),
        ({"about": {"versions": {"mlx": "0.1"}}}, "it has mlx 0.1 and this cluster"),
        ({"surprise": None, "about": 3}, "another version of Tandem"),
    ],
)
def test_host_that_does_not_fit_is_one_clause(other, hello, why):
    specs = json.loads(json.dumps({"versions": read_host_specs().versions}))
    line = json.dumps(
        {"type": "hello", "about": specs, "free_bytes": 1 << 40, "workers": {}} | hello, separators=(",", ":")
    )
    (other.checkout / "launch.sh").write_text(f"#!/bin/sh\necho {shlex.quote(line)}\nexec cat >/dev/null\n")

    async def scenario():
        with pytest.raises(HostUnavailable, match=why):
            await start(launcher_to(other))

    run(scenario())


@pytest.mark.parametrize(("allow_mixed", "why"), [(False, "--allow-mixed"), (True, "the disk of mac2 is full")])
def test_host_with_another_patch_level_of_mlx_is_checked_further_where_that_is_allowed(other, allow_mixed, why):
    versions = read_host_specs().versions
    mixed = versions | {"mlx": versions["mlx"] + "1"}
    line = json.dumps(
        {"type": "hello", "about": {"versions": mixed}, "free_bytes": 0, "workers": {}}, separators=(",", ":")
    )
    (other.checkout / "launch.sh").write_text(f"#!/bin/sh\necho {shlex.quote(line)}\nexec cat >/dev/null\n")

    async def scenario():
        with pytest.raises(HostUnavailable, match=why):
            await start(launcher_to(other, allow_mixed=allow_mixed))

    run(scenario())


def test_host_that_is_down_is_one_clause_and_is_asked_again(other):
    other.go_down("ssh: connect to host mac2.local port 22: Connection refused\r\n")

    async def scenario():
        launcher = launcher_to(other)
        with pytest.raises(HostUnavailable, match="turn on Remote Login"):
            await start(launcher)
        other.come_up()
        assert (await start(launcher)).alive()
        await launcher.end(grace_s=0.0)

    run(scenario())


def test_ssh_that_is_not_there_is_one_clause(other):
    other.ssh.unlink()

    async def scenario():
        with pytest.raises(HostUnavailable, match="install OpenSSH"):
            await start(launcher_to(other))

    run(scenario())


HOST = HostSettings(name="mac2", address="mac2.local", user="ben", port=2222)


@pytest.mark.parametrize(
    ("status", "said", "why"),
    [
        (255, "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "ssh-keygen -R '[mac2.local]:2222'"),
        (255, "No ED25519 host key is known for x\nHost key verification failed.", "run `ssh -p 2222 ben@mac2.local` once"),
        (255, "ben@mac2.local: Permission denied (publickey).", "run `ssh-copy-id -p 2222 ben@mac2.local` once"),
        (255, "ssh: Could not resolve hostname mac2.local: Name or service not known", "no host is named mac2.local"),
        (255, "ssh: connect to host mac2.local port 22: Operation timed out", "wake it up"),
        (255, "Connection reset by peer", "ssh to mac2 failed: Connection reset by peer; try `ssh -p 2222 ben@mac2.local`"),
        (1, "tandem: cannot write to /x; make the folder writable.", "mac2 could not begin: cannot write to /x; make the folder writable"),
        (1, "OSError: [Errno 28] No space left on device: 'x'", "the disk of mac2 is full"),
        (2, "tandem: there is no command 'hosted'; did you mean 'worker'?", "another version of Tandem"),
        (-9, "", "it said nothing"),
    ],
)  # fmt: skip
def test_every_failure_has_a_clause_that_mends_it(status, said, why):
    assert why in why_failed(HOST, status, said)


@pytest.mark.parametrize("path", ["~/tandem", "~/Code/my tandem", "~", "/opt/it's here/$(date)", "~root/x"])
def test_paths_are_one_word_and_keep_their_tilde(path):
    shell = subprocess.run(
        ["sh", "-c", f"printf %s {quoted_path(path)}"], env={"HOME": "/h", "PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert shell.stdout == path.replace("~root", str(Path("~root").expanduser())).replace("~", "/h")


def test_ssh_asks_nobody_and_names_user_and_port():
    words = ssh_command(HOST)
    assert words[:2] == ["ssh", "-T"]
    for option in ("BatchMode=yes", "ConnectTimeout=5", "StrictHostKeyChecking=yes", "ControlPath=none"):
        assert words[words.index(option) - 1] == "-o"
    assert words[-7:-1] == ["-l", "ben", "-p", "2222", "--", "mac2.local"]


def test_coordinator_is_reached_where_it_listens():
    assert reachable(COORDINATOR, "198.51.100.7") == "tcp://198.51.100.7:9"
    assert reachable(COORDINATOR, "10.9.9.9") in {address.endpoint for address in COORDINATOR.addresses}
    assert reachable(Peer(endpoint="tcp://127.0.0.1:9", public_key="k" * 40), "10.9.9.9") == "tcp://127.0.0.1:9"
