"""What a soak counts, and which worker it may kill."""

import subprocess
import sys

from benchmarks.soak import DEATHS_WITHIN_S, MAX_DEATHS, Deaths
from benchmarks.support.resources import Place, ProcessUse, Sample, growth, sample
from tests.support.running_cluster import wait_until


def test_no_worker_is_killed_five_times_in_five_minutes():
    deaths = Deaths(["a", "b"])
    for second in range(MAX_DEATHS):
        deaths.count("a", float(second))
    assert deaths.allowed(10.0) == ["b"]
    assert deaths.wait_s(10.0) == 0
    for second in range(MAX_DEATHS):
        deaths.count("b", 20.0 + second)
    assert deaths.allowed(30.0) == []
    assert deaths.wait_s(30.0) == DEATHS_WITHIN_S - 30.0
    assert deaths.allowed(DEATHS_WITHIN_S) == ["a"]


def use(pid, megabytes, descriptors=5, threads=3):
    return ProcessUse(
        pid=pid, name=f"p{pid}", resident_bytes=megabytes * 1_000_000, descriptors=descriptors, threads=threads
    )


def test_growth_is_that_of_processes_that_live_to_the_end():
    samples = [
        Sample(requests=1, processes=(use(1, 100), use(2, 50)), files={}),
        Sample(requests=2, processes=(use(1, 110, descriptors=9), use(3, 50)), files={}),
        Sample(requests=3, processes=(use(1, 102, descriptors=6), use(3, 70)), files={}),
    ]
    (found,) = growth(samples)
    assert found.name == "p1"
    assert round(found.memory, 6) == 0.1
    assert found.descriptors == (5, 6)
    assert found.threads == (3, 3)


def test_processes_are_found_by_the_home_in_their_command_and_files_by_folder(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "worker-0.out").touch()
    command = [sys.executable, "-c", "import time; time.sleep(60)", "--home", str(tmp_path), "--name", "worker-0"]
    process = subprocess.Popen(command)
    try:
        found = wait_until(lambda: (one := sample([Place.here(tmp_path)], 7)).processes and one, "it is there")
    finally:
        process.kill()
        process.wait()
    assert [(each.pid, each.name) for each in found.processes] == [(process.pid, "worker-0")]
    assert found.processes[0].descriptors >= 3
    assert found.files == {"logs": 1}
