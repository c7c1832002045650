"""The bed itself: hosts are apart, links differ, faults do what they say, and nothing stays behind."""

import contextlib
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.hosts.bed import Bed
from tests.hosts.room import CABLE_BITS_PER_S, WIFI_BITS_PER_S, WIFI_DELAY_S
from tests.hosts.tools import network_of
from tests.support.running_cluster import CHECKOUT, wait_until

pytestmark = pytest.mark.hosts

LIMIT_S = 10.0
# How long nothing must arrive for silence.
SILENCE_S = 0.3


@pytest.fixture
def sockets():
    with contextlib.ExitStack() as sockets:
        yield sockets


@pytest.fixture
def udp(bed, sockets):
    """A function: a UDP socket of a host, bound to one of its interfaces."""

    def udp(host, interface):
        with network_of(bed.hosts[host].pid):
            made = sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.settimeout(LIMIT_S)
        made.bind((bed.address(host, interface), 0))
        return made

    return udp


@pytest.fixture
def tcp(bed, sockets):
    """A function: two ends of a connection from one host to another over their cable."""

    def tcp(client, server):
        with network_of(bed.hosts[server].pid):
            listener = sockets.enter_context(socket.create_server((bed.address(server, f"tb-{client}"), 0)))
        with network_of(bed.hosts[client].pid):
            connected = sockets.enter_context(socket.create_connection(listener.getsockname(), LIMIT_S))
        accepted = sockets.enter_context(listener.accept()[0])
        accepted.settimeout(LIMIT_S)
        return connected, accepted

    return tcp


@pytest.fixture
def healed(bed):
    yield bed
    bed.heal()


def passes(sender, receiver, limit_s=LIMIT_S):
    """Whether a datagram arrives within the limit."""
    sender.sendto(b"?", receiver.getsockname())
    arrived = bool(select.select([receiver], [], [], limit_s)[0])
    if arrived:
        receiver.recv(1)
    return arrived


def is_silent(connected):
    return not select.select([connected], [], [], SILENCE_S)[0]


def round_trip_s(one, other):
    """The least of ten."""
    measured = []
    for _ in range(10):
        begun = time.monotonic()
        for sender, receiver in ((one, other), (other, one)):
            sender.sendto(b"?", receiver.getsockname())
            receiver.recv(1)
        measured.append(time.monotonic() - begun)
    return min(measured)


def transfer_s(sender, receiver, num_bytes):
    """Seconds until all has arrived; the pieces fit into the buffers of the sockets."""
    begun, piece = time.monotonic(), bytes(1 << 15)
    for _ in range(num_bytes // len(piece)):
        sender.sendall(piece)
        left = len(piece)
        while left:
            left -= len(receiver.recv(left))
    return time.monotonic() - begun


def carrier(bed, host, interface):
    return bed.run(host, "cat", f"/sys/class/net/{interface}/carrier").stdout.strip() == "1"


def processes_on(bed, host):
    return bed.run(host, "sh", "-c", "exec cat /proc/[0-9]*/comm").stdout.split()


def namespaces_in_use(kind):
    used = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            used.add((process / "ns" / kind).readlink())
    return used


def namespaces_of(bed, kind):
    return {Path(f"/proc/{host.pid}/ns/{kind}").readlink() for host in bed.hosts.values()}


# --- hosts


def test_every_host_has_a_name_a_user_a_home_and_a_checkout_of_its_own(bed):
    where = "echo $(uname -n) $(id -un) $(id -u) $HOME; pwd"
    said = {name: bed.run(name, "sh", "-c", where).stdout for name in bed.hosts}
    assert said == {
        "a": "host-a ada 2001 /Users/ada\n/Users/ada\n",
        "b": "host-b ben 2002 /Users/ben\n/Users/ben\n",
        "c": "host-c cleo 2003 /Users/cleo\n/Users/cleo\n",
    }
    assert len({host.checkout for host in bed.hosts.values()}) == 3
    assert bed.run("a", "ls", "/Users").stdout == "ada\n"
    assert bed.run("a", "id", "-un", user="root").stdout == "root\n"


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_tandem_runs_from_the_checkout_of_each_host(bed, name):
    checkout = bed.hosts[name].checkout
    done = bed.run(name, f"{checkout}/.venv/bin/python", "-c", "import sys, cluster; print(cluster.__file__, sys.prefix)",
                   env={"PYTHONPATH": str(checkout)})  # fmt: skip
    assert done.stdout == f"{checkout}/cluster/__init__.py {checkout}/.venv\n", done.stderr
    assert not bed.hosts[name].outside(CHECKOUT).exists()


def test_a_host_sees_its_own_processes_only(bed):
    sleeping = bed.popen("b", "sleep", "60")
    wait_until(lambda: "sleep" in processes_on(bed, "b"), "the start of a process", LIMIT_S)
    assert sorted(processes_on(bed, "a")) == ["cat", "sshd"]
    sleeping.terminate()
    assert sleeping.wait(LIMIT_S) != 0
    assert "sleep" not in processes_on(bed, "b")


def test_a_command_that_takes_too_long_is_ended(bed):
    with pytest.raises(subprocess.TimeoutExpired):
        bed.run("c", "sleep", "60", timeout_s=0.2)
    assert "sleep" not in processes_on(bed, "c")


def test_one_host_reaches_the_others_by_ssh_and_they_not_it(bed):
    where = "echo $(uname -n) $(id -un) $HOME; readlink /proc/self/ns/pid /proc/self/ns/net"
    own = bed.run("a", "sh", "-c", where).stdout.split("\n")
    for name, expected in (("b", "host-b ben /Users/ben"), ("c", "host-c cleo /Users/cleo")):
        done = bed.run("a", "ssh", f"host-{name}", where)
        assert done.stdout.split("\n")[0] == expected, done.stderr
        assert not set(done.stdout.split("\n")[:3]) & set(own[:3])
    refused = bed.run("b", "ssh", "host-a", "true")
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr


# --- links


def test_cable_and_wifi_are_counted_apart_and_one_is_slow(bed, udp):
    fast = [udp("a", "tb-b"), udp("b", "tb-a")]
    slow = [udp("a", "wlan0"), udp("b", "wlan0")]
    before = bed.counters("a")
    fast[0].sendto(bytes(1000), fast[1].getsockname())
    assert len(fast[1].recv(2000)) == 1000
    after = bed.counters("a")
    assert after["tb-b"][1] - before["tb-b"][1] >= 1000
    assert after["wlan0"][1] - before["wlan0"][1] < 1000
    assert after["tb-c"][1] - before["tb-c"][1] < 1000
    assert round_trip_s(*fast) < WIFI_DELAY_S
    assert 2 * WIFI_DELAY_S <= round_trip_s(*slow) < 50 * WIFI_DELAY_S


def test_wifi_has_its_rate_and_carries_to_the_receiver_alone(bed, udp):
    on_a, on_b = udp("a", "wlan0"), udp("b", "wlan0")
    assert passes(on_a, on_b)
    before = bed.counters("c")["wlan0"][0]
    begun = time.monotonic()
    for _ in range(60):  # no more than wait in a socket that nobody reads
        on_a.sendto(bytes(1400), on_b.getsockname())
    for _ in range(60):
        on_b.recv(2000)
    assert time.monotonic() - begun > 60 * 1400 * 8 / WIFI_BITS_PER_S + WIFI_DELAY_S
    assert passes(on_b, on_a)
    assert bed.counters("c")["wlan0"][0] - before < 1400


def test_each_two_hosts_have_a_cable_and_names_lead_to_the_wifi(bed, udp):
    for one, other in (("a", "b"), ("a", "c"), ("b", "c")):
        assert passes(udp(one, f"tb-{other}"), udp(other, f"tb-{one}"))
        found = bed.run(one, "getent", "hosts", f"host-{other}").stdout.split()
        assert found == [bed.address(other, "wlan0"), f"host-{other}"]


# --- faults


def test_cut_is_silent_both_ways_and_what_was_sent_arrives_after_healing(healed, tcp, udp):
    on_a, on_b = tcp("a", "b")
    healed.cut("a", "b")
    on_a.sendall(b"from a")
    on_b.sendall(b"from b")
    assert is_silent(on_a)
    assert is_silent(on_b)
    assert carrier(healed, "a", "tb-b")
    assert passes(udp("a", "wlan0"), udp("b", "wlan0"))
    assert passes(udp("a", "tb-c"), udp("c", "tb-a"))
    healed.heal()
    assert on_b.recv(100) == b"from a"
    assert on_a.recv(100) == b"from b"


def test_one_way_loses_one_direction(healed, udp):
    on_a, on_b = udp("a", "tb-b"), udp("b", "tb-a")
    assert passes(on_a, on_b)
    healed.one_way("a", "b")
    assert not passes(on_a, on_b, SILENCE_S)
    assert passes(on_b, on_a)
    healed.one_way("b", "a")
    assert not passes(on_a, on_b, SILENCE_S)
    assert not passes(on_b, on_a, SILENCE_S)
    healed.heal()
    assert passes(on_a, on_b)


def test_unplugged_cable_has_no_carrier_on_either_side(healed, udp):
    on_a, on_b = udp("a", "tb-b"), udp("b", "tb-a")
    healed.unplug("a", "b")
    assert not carrier(healed, "a", "tb-b")
    assert not carrier(healed, "b", "tb-a")
    assert carrier(healed, "a", "tb-c")
    with pytest.raises(OSError, match="unreachable"):
        on_a.sendto(b"?", on_b.getsockname())
    healed.heal()
    wait_until(lambda: carrier(healed, "a", "tb-b") and carrier(healed, "b", "tb-a"), "a carrier", LIMIT_S)
    assert passes(on_a, on_b)


def test_reset_breaks_a_connection_and_refuses_new_ones(healed, tcp):
    on_a, on_b = tcp("a", "b")
    healed.reset("a", "b")
    for each in (on_a, on_b):
        each.sendall(b"?")
        with pytest.raises(ConnectionResetError):
            each.recv(1)
    with pytest.raises(ConnectionRefusedError):
        tcp("a", "b")
    healed.heal()
    on_a, on_b = tcp("a", "b")
    on_a.sendall(b"!")
    assert on_b.recv(1) == b"!"


def test_slowed_cable_has_its_share(healed, tcp):
    num_bytes, share = 4 << 20, 0.01
    least_s = 8 * num_bytes / (CABLE_BITS_PER_S * share)
    on_a, on_b = tcp("a", "b")
    assert transfer_s(on_a, on_b, num_bytes) < least_s / 2
    healed.slow("a", "b", share)
    # What the bucket holds goes at once.
    assert transfer_s(on_a, on_b, num_bytes) > least_s * 0.8
    assert transfer_s(on_b, on_a, num_bytes) > least_s * 0.8
    healed.heal()
    assert transfer_s(on_a, on_b, num_bytes) < least_s / 2


# --- power


def test_host_without_power_says_nothing_and_comes_back_as_a_new_one(bed, sockets, udp):
    bed.run("b", "sh", "-c", "echo kept >file; echo lost >/tmp/file")
    sleeping = bed.popen("b", "sleep", "60")
    with network_of(bed.hosts["a"].pid):
        on_a = sockets.enter_context(socket.create_connection((bed.address("b", "tb-a"), 22), LIMIT_S))
    assert on_a.recv(100).startswith(b"SSH-")
    old = {kind: Path(f"/proc/{bed.hosts['b'].pid}/ns/{kind}").readlink() for kind in ("pid", "net", "mnt", "uts")}
    bed.power_cut("b")
    try:
        assert sleeping.wait(LIMIT_S) != 0
        assert [kind for kind, namespace in old.items() if namespace in namespaces_in_use(kind)] == []
        assert is_silent(on_a)
        assert not carrier(bed, "a", "tb-b")
        with pytest.raises(RuntimeError, match="no power"):
            bed.run("b", "true")
        assert passes(udp("a", "tb-c"), udp("c", "tb-a"))
    finally:
        bed.power_on("b")
    assert bed.run("a", "ssh", "host-b", "cat file /tmp/file").stdout == "kept\n"
    on_a.sendall(b"?")
    with pytest.raises(ConnectionResetError):
        on_a.recv(1)
    assert passes(udp("a", "wlan0"), udp("b", "wlan0"))
    assert passes(udp("c", "tb-b"), udp("b", "tb-c"))


# --- what is left


def what_is_there():
    """Mounts and interfaces of this machine."""
    return Path("/proc/self/mountinfo").read_text(), {name for _, name in socket.if_nameindex()}


def test_nothing_is_left_of_a_bed(possible):
    before = what_is_there()
    with Bed(num_hosts=2) as bed:
        sleeping = bed.popen("a", "sleep", "60")
        used = {kind: namespaces_of(bed, kind) for kind in ("net", "pid", "mnt")}
        room = bed._room._wifi.pid
        used["net"].add(Path(f"/proc/{room}/ns/net").readlink())
        assert bed.folder.is_dir()
    assert sleeping.poll() is not None
    assert not psutil.pid_exists(room)
    wait_until(
        lambda: not any(namespaces & namespaces_in_use(kind) for kind, namespaces in used.items()),
        "the end of the bed's namespaces",  # their processes are dead, the system may yet be at it
    )
    assert what_is_there() == before
    assert not bed.folder.exists()


def test_nothing_is_left_of_a_bed_whose_process_was_killed(possible):
    dying = """
import os, signal
from tests.hosts.bed import Bed
bed = Bed(num_hosts=1).__enter__()
bed.popen("a", "sleep", "60")
print(bed.folder, bed.hosts["a"].pid, bed._room._wifi.pid, os.readlink(f"/proc/{bed.hosts['a'].pid}/ns/pid"), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    before = what_is_there()
    done = subprocess.run(
        [sys.executable, "-c", dying], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, timeout=60, check=False
    )
    folder, *pids, namespace = done.stdout.split()
    wait_until(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids), "the end of its processes", LIMIT_S)
    assert Path(namespace) not in namespaces_in_use("pid")
    assert what_is_there() == before
    Bed(num_hosts=1).down()
    assert not Path(folder).exists()
