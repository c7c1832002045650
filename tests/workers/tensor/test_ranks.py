"""Models that are cut into ranks, under everything that is done with models: stages, kinds of cache, batches, reading, giving back."""

import pytest

from tests.support import ranks_child
from tests.support.in_child import run_in_child


@pytest.mark.parametrize("case", ranks_child.CASES)
def test_ranks(case):
    run_in_child(ranks_child.__name__, case)
