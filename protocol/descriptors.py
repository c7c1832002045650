"""How many files and connections this process may open."""

import contextlib
import resource
from collections.abc import Iterator


def allow_descriptors(wanted: int) -> int:
    """Let this process open `wanted` of them, or as many as the system allows; returns how many of `wanted` it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)


@contextlib.contextmanager
def limits_kept() -> Iterator[None]:
    """What is imported meanwhile cannot change what this process may use.

    mlx-lm allows itself 2,048 descriptors at its import: too few for many connections, for good, and an error where the
    system allows fewer.
    """
    setrlimit = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = setrlimit
