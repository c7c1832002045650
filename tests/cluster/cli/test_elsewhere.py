"""Commands on other hosts, with a program in place of ssh that runs here what it would run there."""

import os
import subprocess
import sys

import msgspec
import pytest

from cluster.cli.main import main
from cluster.membership.host_orders import HostGreeting, HostHello, read_order, to_line
from cluster.settings import HostSettings, ModelSettings, Settings, WorkerSettings
from protocol.home import ClusterState, DesiredState, Home, ProcessIdentity
from protocol.host_specs import read_host_specs
from tests.support.fake_api import FakeApi
from tests.support.running_cluster import CHECKOUT, wait_until

SSH = """#!/bin/sh
for last; do :; done
[ -e {folder}/down ] && {{ echo "ssh: connect to host x port 22: Connection refused" >&2; exit 255; }}
HOME={folder} exec sh -c "$last"
"""
LAUNCHER = """#!/bin/sh
echo "told: $*"
echo "tandem: 1 problem found." >&2
exit {status}
"""


@pytest.fixture
def there(tmp_path, monkeypatch):
    """The folder of the other host, which the last start named mac2 and which has two workers."""
    folder = tmp_path / "there"
    (folder / "bin").mkdir(parents=True)
    (folder / "my tandem").mkdir()
    write_program(folder / "bin" / "ssh", SSH.format(folder=folder))
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    home = Home(tmp_path / "home")
    home.create()
    host = HostSettings(name="mac2", address="mac2.local", checkout="~/my tandem", workers=2)
    settings = Settings(model=ModelSettings(path="/m"), workers=(WorkerSettings(name="worker-0"),), hosts=(host,))
    home.settings_file.write_bytes(msgspec.json.encode(settings))
    return folder


def write_program(file, text):
    file.write_text(text)
    file.chmod(0o755)


@pytest.mark.parametrize(
    ("arguments", "told", "status"),
    [
        (["logs", "mac2-1", "-f", "-n", "3", "--host", "mac2"], "logs -n 3 -f mac2-1", 0),
        (["logs", "--host", "mac2-0"], "logs -n 20", 2),
        (["doctor", "--host", "mac2", "--architectures"], "doctor --architectures", 1),
    ],
)
def test_command_is_run_there_and_its_output_and_exit_code_are_those_here(there, capfd, arguments, told, status):
    write_program(there / "my tandem" / "launch.sh", LAUNCHER.format(status=status))
    assert main(arguments) == status
    printed = capfd.readouterr()
    assert printed.out == f"told: {told}\n"
    assert printed.err == "tandem: mac2: 1 problem found.\n"


@pytest.mark.parametrize("why", ["turn on Remote Login", "has no checkout of Tandem in ~/my tandem", "not found"])
def test_host_that_cannot_be_asked_is_one_sentence(there, capfd, why):
    if "Login" in why:
        (there / "down").touch()
    if "found" in why:
        write_program(there / "my tandem" / "launch.sh", "#!/bin/sh\necho bash: not found >&2\nexit 1\n")
    assert main(["logs", "--host", "mac2"]) == 1
    said = capfd.readouterr().err
    assert why in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("name", "why"), [("mini", "joined with a token"), ("mac9", "which names mac2")])
def test_guest_and_unknown_host_are_told_apart(there, tmp_path, capfd, name, why):
    hosts = [{"name": "local", "workers": ["worker-0"]}, {"name": "mini", "workers": ["guest"]}]
    api = FakeApi({"state": "ready", "hosts": hosts})
    me = ProcessIdentity.of(os.getpid())
    Home(tmp_path / "home").write_state(
        ClusterState(supervisor=me, coordinator=me, api=api.url, port=1, started_at=1.0)
    )
    try:
        assert main(["doctor", "--host", name]) == 2
    finally:
        api.close()
    assert why in capfd.readouterr().err


def test_following_shows_what_comes_and_ends_when_its_reader_goes(there, tmp_path):
    (tmp_path / "home" / "logs" / "mac2.log").write_text("only line\n")
    words = [sys.executable, "-m", "cluster.cli", "logs", "-f", "mac2"]
    follower = subprocess.Popen(words, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    try:
        assert follower.stdout.readline() == "only line\n"
        with (tmp_path / "home" / "logs" / "mac2.log").open("a") as log:
            log.write('{"time": "2023-11-14T22:13:20+00:00", "level": "INFO", "logger": "workers", "mess')
            log.flush()
            log.write('age": "two\\nlines"}\nnext line\n')
        assert follower.stdout.readline().endswith(",000 INFO workers: two\n")
        assert [follower.stdout.readline() for _ in range(2)] == ["lines\n", "next line\n"]
        assert follower.poll() is None
        follower.stdout.close()
        wait_until(lambda: follower.poll() is not None, "the follower ending")
        assert follower.returncode == 0
    finally:
        follower.kill()
        follower.wait()


@pytest.mark.parametrize("is_down", [False, True])
def test_stop_behind_a_dead_coordinator_ends_what_it_left_there_or_says_that_it_cannot(there, tmp_path, capfd, is_down):
    hello = HostHello(about=read_host_specs(), free_bytes=1 << 40, workers={}, num_ended=2)
    (there / "hello").write_bytes(to_line(hello))
    write_program(there / "my tandem" / "launch.sh", f"#!/bin/sh\ncat >{there}/greeting\ncat {there}/hello\n")
    home = Home(tmp_path / "home")
    home.write_desired(DesiredState(incarnation=1, secret="s", public_key="k" * 40, secret_key="s" * 40))
    nobody = ProcessIdentity(pid=os.getpid(), create_time=1.0)
    home.write_state(ClusterState(coordinator=nobody, api="http://x:1", port=1, started_at=1.0))
    if is_down:
        (there / "down").touch()
    assert main(["stop"]) == 0
    printed = capfd.readouterr()
    if is_down:
        assert printed.out == "The coordinator had already ended.\n"
        assert "turn on Remote Login" in printed.err
        assert "end by themselves 120 s after" in printed.err
        return
    assert printed.out == "The coordinator had already ended; 2 of its workers still ran and were stopped.\n"
    assert read_order((there / "greeting").read_bytes()) == HostGreeting(cluster="k" * 40, is_new=True, orphan_s=0.0)
