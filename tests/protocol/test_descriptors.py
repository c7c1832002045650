"""How many files a process may open, and that nobody it imports changes that."""

import resource
import subprocess
import sys

import pytest

from protocol.descriptors import allow_descriptors, limits_kept


@pytest.fixture(autouse=True)
def limits():
    """Those of this process, which other tests may have lowered by what they import; the same afterwards."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield limits
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_as_many_as_wanted_are_allowed_and_no_fewer_than_before(limits):
    hard = limits[1]
    few = 256
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    assert allow_descriptors(few + 100) == few + 100
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (few + 100, hard)
    assert allow_descriptors(few) == few
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (few + 100, hard)


def test_what_is_imported_cannot_change_them(limits):
    with limits_kept():
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits


@pytest.mark.parametrize(
    ("name", "first"),
    [("workers.__main__", "module.import_without_text()"), ("cluster.serving.template_process", "pass")],
    ids=["worker", "templates"],
)
def test_mlx_lm_s_own_limit_is_not_ours(limits, name, first):
    """What it does at its import, under the very imports of these processes."""
    lines = [
        "import resource, sys",
        f"import {name} as module",
        "with module.limits_kept():",
        f"    {first}",
        "    import mlx_lm.utils",
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))",
    ]
    said = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(limit) for limit in limits]
