"""Hosts that lack the model fetch it from who has it, over the cable, and answer as one alone, whatever happens to their disks."""

import os
import shutil

import pytest

from benchmarks.support.random_models import ensure_model
from protocol.model_digest import model_digest
from tests.hosts.cluster import FIRST, HostsCluster
from tests.support.running_cluster import CHECKOUT, wait_until
from workers.model.sparse_model import SparseModel
from workers.model.weights_source import WholeModel

MODEL = CHECKOUT / "models" / "tandem-demo"
PROMPT = "Tell me a long story about a fox."
NUM_TOKENS = 40


@pytest.fixture(scope="module")
def larger(possible, tmp_path_factory):
    """A model that the wifi takes seconds for."""
    return ensure_model("25m-float32", tmp_path_factory.mktemp("models"))


@pytest.fixture
def model(request):
    """A directory on this machine: the bundled model, or the one of the fixture of a name."""
    return request.getfixturevalue(request.param) if hasattr(request, "param") else MODEL


@pytest.fixture
def cluster(bed, model):
    """One that has the model on host a only."""
    for host in bed.hosts.values():
        shutil.rmtree(host.outside(host.checkout) / "models", ignore_errors=True)
        shutil.rmtree(host.outside(host.checkout) / ".tandem" / "models", ignore_errors=True)
    first = bed.hosts[FIRST]
    shutil.copytree(model, first.outside(first.checkout) / "models" / model.name)
    cluster = HostsCluster(bed)
    cluster.start("--model", str(first.checkout / "models" / model.name))
    try:
        cluster.alone = cluster.prompt(PROMPT, NUM_TOKENS)["token_ids"]
        yield cluster
    finally:
        cluster.stop()


def fetched(bed, name, model):
    """The folder into which a host fetches a model."""
    home = bed.hosts[name].outside(bed.hosts[name].checkout) / ".tandem"
    return home / "models" / model_digest(model)


def answers_over(cluster, num_hosts):
    """All of them, with the ids of one."""
    answer = cluster.prompt(PROMPT, NUM_TOKENS, "--strategy", "distributed-cached")
    return (answer["token_ids"], len(answer["workers"])) == (cluster.alone, num_hosts)


def differs(bed, name, model):
    """Pieces that a host has and that are not those of the model."""
    own, right = SparseModel.open(fetched(bed, name, model)), WholeModel(model)
    pieces = [(file, piece) for file, spans in enumerate(own.spans) for piece in range(len(spans))]
    return [each for each in pieces if own.hash_of(*each) is not None and own.read(*each) != right.read(*each)]


def rot(bed, name, model):
    """Flip a bit in each piece of a tensor that a host has, as a failing disk does: no file looks as if it had been written."""
    own = SparseModel.open(fetched(bed, name, model))
    for file, spans in enumerate(own.spans):
        path = own.path / own.manifest.files[file].name
        before = path.stat()
        with path.open("r+b") as opened:
            for piece, span in enumerate(spans):
                if span.tensor and own.hash_of(file, piece) is not None:
                    opened.seek(span.start)
                    first = opened.read(1)
                    opened.seek(span.start)
                    opened.write(bytes([first[0] ^ 1]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("model", ["larger"], indirect=True)
def test_hosts_without_the_model_fetch_it_and_a_damaged_copy_reaches_no_other(cluster, bed, model):
    cluster.invite("b")
    cluster.await_parts(2)
    assert answers_over(cluster, 2)
    assert differs(bed, "b", model) == []
    rot(bed, "b", model)
    bed.slow("a", "c", 0.001)  # so that c takes from b what b gives
    cluster.invite("c")
    cluster.await_parts(3)
    bed.heal()
    assert "were not what they should be, and were asked for again" in cluster.log("c")
    assert differs(bed, "c", model) == []
    assert differs(bed, "b", model) != []
    assert answers_over(cluster, 3)  # b computes with what it read before
    for file in fetched(bed, "b", model).glob("*.safetensors"):
        file.touch()
    cluster.launch("b", "stop")
    cluster.await_parts(2)
    cluster.rejoin("b")
    cluster.await_parts(3)
    assert "are not what they were when they came; they are fetched again" in cluster.log("b")
    assert differs(bed, "b", model) == []
    assert answers_over(cluster, 3)


def test_full_disk_costs_one_sentence_and_no_answer(cluster, bed):
    folder = str(bed.hosts["b"].checkout / ".tandem" / "models")
    as_root = {"user": "root"}
    bed.run("b", "mkdir", "-p", folder)
    assert bed.run("b", "mount", "-t", "tmpfs", "-o", "size=24m,mode=777", "tmpfs", folder, **as_root).returncode == 0
    cluster.invite("b")
    status = cluster.await_status(lambda status: of_room(status) != [], "status saying what host-b lacks")
    (sentence,) = of_room(status)
    assert sentence.startswith("lost host-b: worker host-b cannot take part: the disk of")
    assert (status["state"], "host-b" in hosts(status)) == ("ready", False)
    wait_until(lambda: sentence.partition("take part: ")[2] in cluster.log("b"), "host-b saying it itself")
    assert cluster.prompt(PROMPT, NUM_TOKENS)["token_ids"] == cluster.alone
    assert bed.run("b", "umount", folder, **as_root).returncode == 0
    cluster.invite("b")
    cluster.await_parts(2)
    assert answers_over(cluster, 2)


def of_room(status):
    """What status tells of disks that are full."""
    return [event["what"] for event in status["events"] if "make room there" in event["what"]]


def hosts(status):
    return {host["name"] for host in status["hosts"]}
