"""Models made once, and clusters that are certainly gone after the test that asked for them."""

from contextlib import closing

import pytest

from tests.support.browser import browser, visit  # noqa: F401 - fixtures
from tests.support.running_cluster import RunningCluster
from workers.zoo import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A random model of eight layers with tokenizer and chat template, in float32; its context is 4,096 tokens."""
    return make_tiny_model("qwen3", tmp_path_factory.mktemp("models") / "tiny-qwen3", num_hidden_layers=8)


@pytest.fixture
def cluster():
    """A home in which nothing runs yet."""
    with closing(RunningCluster()) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def serving(tiny_model):
    """One cluster of two workers that many tests share; they must leave it as they found it."""
    with closing(RunningCluster()) as cluster:
        cluster.start(tiny_model)
        yield cluster
