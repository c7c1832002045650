"""The C library's heap, which every process of a cluster fills and empties."""

import ctypes
import sys


def give_back_memory() -> None:
    """What was freed goes back to the system, where the C library would keep it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
