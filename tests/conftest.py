"""What holds for all tests: on a loaded machine an example may take its time, and is no failure for that; their order; that
nothing compiles, but for what is said to; and that MLX computes as it does in a worker.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

# Compiling one function for a CPU takes longer than most tests. The cluster of the bundled model compiles as users' do.
os.environ.setdefault("MLX_DISABLE_COMPILE", "1")
# NumPy's threads for linear algebra wait by turning, which takes longer than what there is to compute.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

settings.register_profile("tandem", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tandem")

# Files of these take longest, and one file stays with one process: they go first, so that no processor is idle at the end.
# Those of hosts mostly wait: one at a time beside what computes.
_LONGEST = (
    "tests/hosts/test_cluster.py",
    "test_split_architectures.py",
    "tests/in_process/",
    "tests/hosts/test_ssh.py",
    "architectures.py",
    "tests/integration/",
    "tests/hosts/",
    "tests/workers/",
    "tests/benchmarks/",
)


def pytest_sessionstart() -> None:
    """Before anything uses MLX, and once it is said that nothing compiles."""
    from workers.engine.compute_thread import put_compute_thread_in_batch_class

    put_compute_thread_in_batch_class()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first; otherwise as they were."""
    items.sort(key=lambda item: next((at for at, part in enumerate(_LONGEST) if part in item.nodeid), len(_LONGEST)))
