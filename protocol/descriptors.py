"""How many files and connections this process may open."""

import resource


def allow_descriptors(wanted: int) -> int:
    """Let this process open `wanted` of them, or as many as the system allows; returns how many of `wanted` it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    return wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)
