"""What memory a process takes from its machine: its footprint on a Mac, its resident memory elsewhere.

On a Mac the resident size leaves out what is compressed or swapped, and counts files that are only mapped; the footprint, which
Activity Monitor shows and limits go by, does neither.
"""

import ctypes
import struct
import sys

import psutil

# Of `struct rusage_info_v0`: a UUID, then numbers of 64 bits, of which the eighth is ri_phys_footprint.
_USAGE = struct.Struct("=16s10Q")
_FOOTPRINT = 8
_VERSION_0 = 0


def footprint_bytes(process: psutil.Process) -> int:
    """Of a living process. Raises psutil.NoSuchProcess."""
    if sys.platform != "darwin":
        return process.memory_info().rss
    usage = ctypes.create_string_buffer(_USAGE.size)
    if ctypes.CDLL("/usr/lib/libproc.dylib").proc_pid_rusage(process.pid, _VERSION_0, usage):
        raise psutil.NoSuchProcess(process.pid)
    return footprint_in(usage.raw)


def footprint_in(usage: bytes) -> int:
    """The footprint that a `struct rusage_info_v0` says."""
    number: int = _USAGE.unpack(usage)[_FOOTPRINT]
    return number
