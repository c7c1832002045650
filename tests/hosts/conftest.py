"""Hosts of their own for the tests of a file, where this machine can have them."""

import pytest

from tests.hosts.bed import Bed
from tests.hosts.tools import why_no_bed


@pytest.fixture(scope="session")
def possible():
    """Skips, with the reason, where there can be no bed."""
    if why := why_no_bed():
        pytest.skip(why)


@pytest.fixture(scope="module")
def bed(possible):
    """Three hosts that the tests of a file share; each must leave them healed and with power."""
    with Bed() as bed:
        yield bed
