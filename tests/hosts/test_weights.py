"""Hosts that lack the model fetch it from the one that has it, over the cable, and answer as it does alone."""

import shutil

import pytest

from protocol.model_digest import model_digest
from tests.hosts.cluster import HostsCluster
from tests.support.running_cluster import CHECKOUT

MODEL = CHECKOUT / "models" / "tandem-demo"
PROMPT = "Tell me a long story about a fox."
NUM_TOKENS = 40


@pytest.fixture
def cluster(bed):
    for name in ("b", "c"):
        shutil.rmtree(bed.hosts[name].outside(bed.hosts[name].checkout) / "models" / "tandem-demo")
    cluster = HostsCluster(bed)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


def test_hosts_without_the_model_fetch_it_and_answer_with_the_ids_of_one(cluster, bed):
    alone = cluster.prompt(PROMPT, NUM_TOKENS)["token_ids"]
    cluster.invite("b", "c")
    cluster.await_parts(3)
    answer = cluster.prompt(PROMPT, NUM_TOKENS, "--strategy", "distributed-cached")
    assert (answer["token_ids"], len(answer["workers"])) == (alone, 3)
    for name in ("b", "c"):
        home = bed.hosts[name].outside(bed.hosts[name].checkout) / ".tandem"
        assert (home / "models" / model_digest(MODEL) / "model.safetensors").is_file()
