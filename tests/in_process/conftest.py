"""The models of these tests, as small as their workers allow: most of the time goes into loading and running them."""

import pytest

from tests.support.in_process.cluster import Workshop
from workers.zoo import make_tiny_model


def _workshop(tmp_path_factory, **sizes):
    folder = tmp_path_factory.mktemp("models")
    return Workshop(make_tiny_model("llama", folder / "model", **sizes), folder)


@pytest.fixture(scope="session")
def pair_workshop(tmp_path_factory):
    """Two layers for two workers. The answer to PROMPT keeps changing, so that a token lost or twice would show."""
    return _workshop(tmp_path_factory, num_hidden_layers=2, seed=3)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    return _workshop(tmp_path_factory, num_hidden_layers=4)


@pytest.fixture(scope="session")
def wide_workshop(tmp_path_factory):
    """Weights that are large beside the caches."""
    return _workshop(tmp_path_factory, num_hidden_layers=6, intermediate_size=768)
