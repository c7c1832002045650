"""One tiny model for every cluster of these tests, and one whose weights are large beside its caches."""

import pytest

from tests.support.in_process.cluster import Workshop
from workers.zoo import make_tiny_model


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return Workshop(make_tiny_model("llama", folder / "tiny", num_hidden_layers=4), folder)


@pytest.fixture(scope="session")
def wide_workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    model = make_tiny_model("llama", folder / "wide", num_hidden_layers=6, intermediate_size=768)
    return Workshop(model, folder)
