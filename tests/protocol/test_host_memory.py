"""What a host has for workers: the least of what there is, what Metal recommends and what a control group allows."""

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from protocol import host_memory
from protocol.host_memory import GroupMemory, HostMemory, read_groups, read_host_memory

GB = 1 << 30
UNLIMITED_1 = "9223372036854771712\n"  # as version 1 says that there is no limit


@pytest.mark.parametrize(
    ("total", "working_set", "num_workers", "limit"),
    [
        (16 * GB, None, 1, 12 * GB),
        (16 * GB, None, 3, 4 * GB),
        (16 * GB, 10 * GB, 1, 10 * GB),
        (16 * GB, 10 * GB, 2, 5 * GB),
        (512 * GB, 464 * GB, 1, 384 * GB),
    ],
)
def test_workers_share_the_least_of_their_part_and_what_metal_recommends(total, working_set, num_workers, limit):
    assert HostMemory(total=total, free=0, working_set=working_set).of_worker(num_workers) == limit


def group(folder, limit, used, *, files=("memory.max", "memory.current", "inactive_file"), inactive=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files[0]).write_text(limit)
    (folder / files[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{files[2]} {inactive}\nslab 7\n")


def own(tmp_path, text):
    file = tmp_path / "own"
    file.write_text(text)
    return file


def test_limits_of_a_group_and_of_those_above_it_count(tmp_path):
    root = tmp_path / "cgroup"
    group(root / "a" / "b", "max\n", 3)
    group(root / "a", "1000\n", 700, inactive=200)
    assert read_groups(root, own(tmp_path, "0::/a/b\n")) == [GroupMemory(1000, 500)]


def test_group_of_a_container_is_the_root_of_what_it_sees(tmp_path):
    root = tmp_path / "cgroup"
    group(root, "1000\n", 1200)
    assert read_groups(root, own(tmp_path, "0::/\n")) == [GroupMemory(1000, 0)]
    assert read_groups(root, own(tmp_path, "0::/of/the/host\n")) == [GroupMemory(1000, 0)]


def test_groups_of_version_1_have_other_files(tmp_path):
    files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    root = tmp_path / "cgroup"
    group(root / "memory", UNLIMITED_1, 10, files=files)
    group(root / "memory" / "a", "1000\n", 400, files=files, inactive=100)
    named = own(tmp_path, "12:cpu,cpuacct:/a\n7:memory:/a\n1:name=systemd:/a\n0::/a\n")
    assert read_groups(root, named)[0] == GroupMemory(1000, 700)
    assert min(found.limit for found in read_groups(root, named)) == 1000


@pytest.mark.parametrize("text", ["", "nonsense:\n0::/nowhere\n", "0::/../..\n"])
def test_no_groups_are_no_limits(tmp_path, text):
    assert read_groups(tmp_path / "cgroup", own(tmp_path, text)) == []
    assert read_groups(tmp_path / "cgroup", tmp_path / "absent") == []


def test_this_host_has_some_memory_and_no_more_than_the_machine():
    found = read_host_memory()
    assert 0 < found.free <= found.total <= psutil.virtual_memory().total


@pytest.mark.parametrize(("said", "expected"), [("11453251584\n", 11453251584), ("", None), ("KeyError\n", None)])
def test_what_metal_says_counts_on_a_mac_alone(said, expected, monkeypatch):
    host_memory._working_set.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))
    assert read_host_memory().working_set == expected
    monkeypatch.setattr(sys, "platform", "linux")
    assert read_host_memory().working_set is None
    host_memory._working_set.cache_clear()
