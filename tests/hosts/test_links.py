"""What hosts are told of their links: an excluded interface carries nothing and leads nowhere, a preferred one carries all that works."""

import pytest

from tests.hosts.cluster import FIRST, HostsCluster
from tests.hosts.room import WIFI


@pytest.fixture(scope="module")
def cluster(bed):
    """Host a does without its cable to b, host c prefers the wifi."""
    for host, setting in ((FIRST, 'exclude = ["tb-b"]'), ("c", f'prefer = ["{WIFI}"]')):
        machine = bed.hosts[host]
        with (machine.outside(machine.checkout) / "configs" / "local.toml").open("a") as config:
            config.write(f"\n[links]\n{setting}\n")
    cluster = HostsCluster(bed)
    cluster.start()
    try:
        cluster.invite("b", "c")
        cluster.await_parts(3)
        yield cluster
    finally:
        cluster.stop()


def used(status, one, other):
    """The interfaces that one sends to another from."""
    links = [link for link in status["links"] if (link["from"], link["to"]) == (one, other)]
    return [link["interface"] for link in links if link["in_use"]]


def test_preferred_and_excluded_interfaces_decide_where_speed_would_not(cluster):
    def settled(status):
        return [used(status, *pair) for pair in (("worker-0", "host-c"), ("host-b", "host-c"))] == [["tb-c"], ["tb-c"]]

    status = cluster.await_status(settled, "the cables in use that nothing speaks against")
    assert used(status, "host-c", "worker-0") == used(status, "host-c", "host-b") == [WIFI]
    assert used(status, "worker-0", "host-b") == used(status, "host-b", "worker-0") == [WIFI]
    answer = cluster.prompt("What is a KV cache?", 10, "--strategy", "distributed-cached")
    assert len(answer["workers"]) == 3


def test_excluded_address_is_not_listened_at_and_not_told(cluster, bed):
    command = cluster.launch(FIRST, "token", "new")
    excluded, other = bed.address(FIRST, "tb-b"), bed.address(FIRST, WIFI)
    assert f"--join {other}:" in command
    assert excluded not in command
    port = command.partition(f"--join {other}:")[2].split()[0]
    connects = [bed.run("b", "bash", "-c", f"exec 3<>/dev/tcp/{host}/{port}").returncode for host in (other, excluded)]
    assert connects == [0, 1]
