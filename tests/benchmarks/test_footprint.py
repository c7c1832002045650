"""The memory of a process as its system counts it."""

import ctypes
import struct
import sys
from types import SimpleNamespace

import psutil
import pytest

from benchmarks.support.footprint import footprint_bytes, footprint_in

FOOTPRINT, RESIDENT = 7_654_321, 9_876_543


def usage():
    """A `struct rusage_info_v0`: UUID; user, system; idle and interrupt wakeups; pageins; wired; resident; footprint; start, end."""
    return bytes(range(16)) + struct.pack("=10Q", 1, 2, 3, 4, 5, 6, RESIDENT, FOOTPRINT, 7, 8)


def test_footprint_is_not_the_resident_size():
    assert footprint_in(usage()) == FOOTPRINT


@pytest.mark.parametrize("status", [0, -1])
def test_a_mac_is_asked_by_its_own_library(status, monkeypatch):
    def proc_pid_rusage(pid, version, into):
        assert (pid, version) == (71, 0)
        into.raw = usage()
        return status

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(proc_pid_rusage=proc_pid_rusage))
    if status:
        with pytest.raises(psutil.NoSuchProcess):
            footprint_bytes(SimpleNamespace(pid=71))
    else:
        assert footprint_bytes(SimpleNamespace(pid=71)) == FOOTPRINT


def test_this_process_has_one():
    assert footprint_bytes(psutil.Process()) > 1_000_000
