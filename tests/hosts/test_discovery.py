"""A worker finds its cluster by multicast over a network that both hosts are in, and is told when there is none."""

import shlex

import pytest

from protocol.join_token import make_id, make_secret, make_token
from tests.hosts.cluster import FIRST, HostsCluster
from tests.hosts.tools import SEARCHED
from tests.support.running_cluster import wait_until

FOREIGN = make_token("k" * 40, make_id() + make_secret())
TAKE_MDNS = (
    "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 5353)); print(1, flush=True); input()"
)


@pytest.fixture(scope="module")
def cluster(bed):
    """It ends with its hosts."""
    return HostsCluster(bed)


@pytest.fixture(scope="module")
def announced(cluster):
    """It runs on the first host."""
    cluster.start()
    log_says(cluster, "announced as 'host-a ")
    return cluster


def log_says(cluster, text):
    host = cluster.bed.hosts[FIRST]
    log = host.outside(host.checkout) / ".tandem" / "logs" / "coordinator.log"
    wait_until(lambda: text in log.read_text(), f"{text!r} in the log")


def join_auto(cluster, token=None):
    by = ("--token", token) if token else ()
    launch = str(cluster.bed.hosts["b"].checkout / "launch.sh")
    return cluster.bed.run("b", launch, "worker", "--join", "auto", *by, "--background", timeout_s=120.0)


def token_of(cluster):
    return shlex.split(cluster.launch(FIRST, "token", "new").splitlines()[0])[-1]


def test_worker_finds_the_cluster_of_its_token_and_no_other(announced):
    foreign = join_auto(announced, FOREIGN)
    assert foreign.returncode == 1
    assert "Other clusters were found (host-a), not the one that is meant" in foreign.stderr
    joined = join_auto(announced, token_of(announced))
    assert joined.returncode == 0, joined.stderr + announced.logs()
    announced.await_parts(2)
    announced.launch("b", "stop")
    returned = join_auto(announced)
    assert returned.returncode == 0, returned.stderr + announced.logs()
    announced.await_parts(2)
    announced.launch("b", "stop")


def test_service_joins_once_by_a_token_and_runs_without_it(announced, bed):
    """What systemd would do is done here: its command is run with its variables."""
    host = bed.hosts["c"]  # whose checkout has a space in its path
    commands = host.outside(host.home) / "bin"
    commands.mkdir()
    for name in ("systemctl", "loginctl"):
        (commands / name).write_text("#!/bin/sh\n")
        (commands / name).chmod(0o755)
    install = (str(host.checkout / "launch.sh"), "worker", "--install-service", "--join", "auto")
    done = bed.run(
        "c", *install, "--token", token_of(announced), env={"PATH": f"{host.home}/bin:{SEARCHED}"}, timeout_s=120.0
    )
    assert done.returncode == 0, done.stderr + announced.logs()
    assert done.stdout.startswith("Worker host-c is a service of this machine")
    announced.await_parts(1)

    unit = host.outside(host.home) / ".config/systemd/user/tandem-worker-host-c.service"
    lines = [line.partition("=") for line in unit.read_text().splitlines()]
    variables = dict(shlex.split(value)[0].split("=", 1) for key, _, value in lines if key == "Environment")
    (command,) = [shlex.split(value) for key, _, value in lines if key == "ExecStart"]
    with bed.popen("c", *command, env=variables) as service:
        announced.await_parts(2)
        service.terminate()
    announced.await_parts(1)


def test_cluster_starts_where_the_port_of_mdns_is_taken_says_so_in_its_log_and_is_not_found(cluster, bed):
    cluster.stop()
    python = str(bed.hosts[FIRST].checkout / ".venv" / "bin" / "python")
    with bed.popen(FIRST, python, "-c", TAKE_MDNS, user="root", stdin=-1, stdout=-1) as taker:
        taker.stdout.readline()
        cluster.start()
        log_says(cluster, "this cluster is not announced")
        gone = join_auto(cluster, FOREIGN)
        taker.stdin.close()
    assert gone.returncode == 1
    assert "No cluster was found in the networks of this machine" in gone.stderr
