"""Hosts that the configuration names: started and ended over ssh, done without where they fail, and kept through a restart."""

import json
import re
import time

import pytest

from tests.hosts.cluster import FIRST, HostsCluster, num_parts
from tests.support.running_cluster import wait_until

PROMPT = "Tell me a long story about a fox."


@pytest.fixture(scope="module")
def cluster(bed):
    """Nothing runs yet. It ends with its hosts."""
    return HostsCluster(bed)


@pytest.fixture
def whole(cluster, bed):
    """One worker here and one on each other host, started now if nothing runs."""
    if cluster.told_status()["state"] == "stopped":
        cluster.launch(FIRST, "start", "--config", configure(bed, "b", "c"))
    cluster.await_parts(3)
    return cluster


def configure(bed, *hosts, **changes):
    """A configuration on host a with these hosts; returns its path there."""
    text = '[[workers]]\nname = "worker-0"\n'
    for name in hosts:
        checkout = "~/" + str(bed.hosts[name].checkout.relative_to(bed.hosts[name].home))
        keys = {"address": f"host-{name}", "user": bed.hosts[name].user, "checkout": checkout} | changes.get(name, {})
        text += "[[hosts]]\n" + "".join(f"{key} = {value!r}\n" for key, value in keys.items())
    file = bed.hosts[FIRST].home / "hosts.toml"
    bed.hosts[FIRST].outside(file).write_text(text)
    return str(file)


def processes(bed, host):
    """What of Tandem runs there."""
    found = bed.run(host, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '", user="root").stdout
    return re.findall(r"-m (?:workers|cluster\.\w+)[^-]*", found)


def worker_on(status, host):
    return next(worker for worker in status["workers"] if worker["host"] == f"host-{host}")


def test_start_brings_three_hosts_up_that_are_looked_at_from_the_first(whole):
    status = whole.status()
    assert sorted(worker["host"] for worker in status["workers"]) == ["host-b", "host-c", "local"]
    assert {host["name"]: host["workers"] for host in status["hosts"]} == {
        "local": ["worker-0"], "host-b": ["host-b"], "host-c": ["host-c"],
    }  # fmt: skip
    answer = whole.prompt(PROMPT, 20, "--strategy", "distributed-cached")
    assert sorted(answer["workers"]) == ["host-b", "host-c", "worker-0"]
    assert "belongs to the cluster" in whole.launch(FIRST, "logs", "--host", "host-b", "host-b", "-n", "1000")
    assert "mlx-lm" in whole.launch(FIRST, "doctor", "--host", "host-c")
    listed = json.loads(whole.launch(FIRST, "models", "list", "--json"))["hosts"]
    held = {host["name"]: {model["id"] for model in host["models"]} for host in listed}
    assert held == dict.fromkeys(("local", "host-b", "host-c"), held["local"])
    assert "tandem-demo" in held["local"]


def test_worker_that_is_killed_is_started_again_there(whole, bed):
    earlier = worker_on(whole.told_status(), "b")["pid"]
    bed.run("b", "kill", "-9", str(earlier))
    whole.await_status(
        lambda status: num_parts(status) == 3 and worker_on(status, "b")["pid"] != earlier, "another worker on host b"
    )


def test_connections_that_are_lost_cost_nothing(whole, bed):
    before = whole.await_cables()  # moving to one is another epoch
    bed.run(
        FIRST, "sh", "-c", "for p in /proc/[0-9]*; do grep -qz '^ssh$' $p/cmdline && kill -9 ${p#/proc/}; done; true"
    )
    assert whole.prompt(PROMPT, 20, "--strategy", "distributed-cached")["token_ids"]
    after = whole.told_status()
    assert [worker_on(after, host)["pid"] for host in "bc"] == [worker_on(before, host)["pid"] for host in "bc"]
    assert after["epoch"] == before["epoch"]


def test_stop_leaves_nothing_and_a_second_start_has_all_hosts_at_its_end(whole, bed):
    stopping = time.monotonic()
    whole.launch(FIRST, "stop")
    stopped = time.monotonic()
    wait_until(lambda: [processes(bed, host) for host in bed.hosts] == [[], [], []], "who stopped them to end, too")
    file = configure(bed, "b", "c")
    starting = time.monotonic()
    whole.launch(FIRST, "start", "--config", file)
    started = time.monotonic()
    assert num_parts(whole.told_status()) == 3
    print(f"start {started - starting:.1f} s, stop {stopped - stopping:.1f} s")


def test_coordinator_that_is_killed_comes_back_to_workers_with_their_weights(cluster, bed):
    cluster.stop()
    cluster.launch(FIRST, "start", "--config", configure(bed, "b"))
    before = cluster.await_parts(2)
    bed.run(FIRST, "kill", "-9", str(before["coordinator"]["pid"]))
    after = cluster.await_status(
        lambda status: num_parts(status) == 2 and status["coordinator"]["pid"] != before["coordinator"]["pid"],
        "another coordinator having both",
    )
    mine, earlier = worker_on(after, "b"), worker_on(before, "b")
    of_mine, of_earlier = ((each["pid"], each["memory"]["read_bytes"]) for each in (mine, earlier))
    assert of_mine == of_earlier, cluster.logs()
    wait_until(lambda: "workers" in " ".join(processes(bed, "b")), "the worker")
    host = bed.hosts[FIRST]
    state = json.loads(host.outside(host.checkout / ".tandem" / "cluster.json").read_text())
    bed.run(FIRST, "kill", "-9", *(str(state[leader]["pid"]) for leader in ("supervisor", "coordinator")))
    assert "2 of its workers still ran and were stopped" in cluster.launch(FIRST, "stop")
    assert processes(bed, "b") == []


def test_hosts_that_fail_cost_their_own_place_and_come_later(cluster, bed):
    cluster.stop()
    file = configure(bed, "b", "c", b={"checkout": "~/nowhere"})
    bed.power_cut("c")
    said = cluster.launch(FIRST, "start", "--config", file)
    assert cluster.status()["state"] == "degraded"
    assert "missing host-b: host-b has no checkout of Tandem in ~/nowhere" in said
    assert "missing host-c: host-c does not answer" in said
    assert cluster.prompt(PROMPT, 20)["token_ids"]
    bed.power_on("c")
    cluster.await_status(lambda status: worker_on(status, "c")["layers"] is not None, "host c taking part")
