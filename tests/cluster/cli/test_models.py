"""`models`: what is held where, and that nothing is deleted but what may be, while nobody needs it."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import msgspec
import pytest

from cluster.cli import models
from cluster.cli.finding import found_homes
from cluster.cli.session import Session
from cluster.cli.terminal import Terminal
from cluster.settings import ModelSettings, Settings, WorkerSettings
from protocol.errors import ModelError, TandemError, UsageError
from protocol.home import ClusterState, ProcessIdentity
from protocol.model_digest import model_digest
from tests.support.fake_api import FakeApi
from tests.support.running_cluster import wait_until
from tests.support.weights_hosts import SourceHost, fetch, fetcher
from workers.zoo import make_tiny_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def session(tmp_path, llama):
    """Of a machine with a part of a model that was fetched, one in the hub's cache, and one of somebody's own."""
    environment = {"TANDEM_HOME": str(tmp_path / "home"), "HF_HUB_CACHE": str(tmp_path / "hub")}
    session = Session(Terminal(io.StringIO()), environment)
    session.home.create()
    host = SourceHost("a", llama)
    fetch(fetcher(session.home.models, host), model_digest(llama), [host], (0, 2))
    shutil.copytree(llama, hub(session) / "snapshots" / "abc")
    session.home.remember_model("any", llama)
    return session


def hub(session):
    return session.home.root.parent / "hub" / "models--org--tiny"


def listed(session):
    return models.on_hosts(session)[0]["models"]


def names(session):
    return {model["id"] for model in listed(session)} - {"tandem-demo", "tandem-demo-draft"}


def test_list_is_of_this_machine_where_no_cluster_runs(session, llama):
    assert names(session) == {model_digest(llama), "org/tiny", "llama"}
    part = next(model for model in listed(session) if model["source"] == "fetched")
    assert not part["complete"]
    lines = models.table(models.on_hosts(session))
    assert any("% of it" in line and model_digest(llama) in line for line in lines)
    assert any("complete" in line and "org/tiny" in line for line in lines)


def test_list_has_the_other_hosts_of_a_running_cluster(session):
    told = {"digest": "d" * 32, "name": "m", "held_bytes": 5, "num_bytes": None, "source": "hub"}
    api = FakeApi({})
    hosts = [{"name": "mac2", "models": [told]}, {"name": "mac3", "models": None}]
    api.answers["/v1/cluster/models"] = (200, json.dumps({"hosts": hosts}).encode())
    me = ProcessIdentity.of(os.getpid())
    session.home.write_state(ClusterState(supervisor=me, coordinator=me, api=api.url, port=1, started_at=1.0))
    try:
        found = models.on_hosts(session)
    finally:
        api.close()
    assert [host["name"] for host in found] == ["local", "mac2", "mac3"]
    assert (found[1]["models"][0]["id"], found[1]["models"][0]["complete"]) == ("m", False)
    assert [line.split(maxsplit=1)[1] for line in models.table(found) if "mac3" in line] == ["did not answer"]


def test_what_was_fetched_goes_by_its_digest_and_nothing_else_does(session, llama):
    assert models.remove(session, model_digest(llama)[:12], confirmed=True) == f"Deleted {model_digest(llama)[:12]}."
    assert not (session.home.models / model_digest(llama)).exists()
    assert llama.is_dir()


def test_hubs_cache_is_touched_only_where_that_was_confirmed(session):
    with pytest.raises(UsageError, match="models rm org/tiny --yes"):
        models.remove(session, "org/tiny", confirmed=False)
    assert hub(session).is_dir()
    models.remove(session, "org/tiny", confirmed=True)
    assert not hub(session).exists()
    assert names(session).isdisjoint({"org/tiny"})


def test_what_somebody_else_put_there_or_what_is_no_name_stays(session):
    before = names(session)
    for wanted in ("llama", "tandem-demo", "..", "../home", "/", "", "a", "org/other"):
        with pytest.raises(UsageError):
            models.remove(session, wanted, confirmed=True)
    assert names(session) == before


def test_link_in_place_of_a_folder_is_not_followed(session, tmp_path):
    (tmp_path / "kept").mkdir()
    hub(session).rename(tmp_path / "kept" / "elsewhere")
    hub(session).symlink_to(tmp_path / "kept" / "elsewhere")
    with pytest.raises(TandemError, match="cannot be deleted"):
        models.remove(session, "org/tiny", confirmed=True)
    assert (tmp_path / "kept" / "elsewhere" / "snapshots").is_dir()


@contextmanager
def running(home, module, *words):
    """A process that says of itself what one of a cluster says."""
    command = [sys.executable, "-c", "import time; time.sleep(60)", "-m", module, "--home", str(home), *words]
    with subprocess.Popen(command) as process:
        try:
            wait_until(lambda: home in [each.root for each in found_homes()], "the process being seen")
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("path", ["org/tiny", "snapshots/abc"])
def test_model_of_a_cluster_that_runs_stays(session, tmp_path, path):
    other = Session(session.terminal, {"TANDEM_HOME": str(tmp_path / "other")})
    other.home.create()
    place = path if path == "org/tiny" else str(hub(session) / path)
    settings = Settings(model=ModelSettings(path=place), workers=(WorkerSettings(name="w"),))
    other.home.settings_file.write_bytes(msgspec.json.encode(settings))
    with (
        running(other.home.root, "cluster.coordinator"),
        pytest.raises(TandemError, match=r"is what the cluster in .* runs"),
    ):
        models.remove(session, "org/tiny", confirmed=True)
    models.remove(session, "org/tiny", confirmed=True)


def test_model_stays_while_a_worker_of_a_cluster_elsewhere_may_need_it(session):
    with running(session.home.root, "workers", "--guest"), pytest.raises(TandemError, match="may need org/tiny"):
        models.remove(session, "org/tiny", confirmed=True)
    models.remove(session, "org/tiny", confirmed=True)


@pytest.mark.parametrize("repo", ["/etc", "../x/y", "tiny", "a/b/c", ""])
def test_what_is_no_repository_is_not_asked_for(session, repo):
    with pytest.raises(UsageError, match="is no repository of the hub"):
        models.pull(session, repo)


def test_hub_that_cannot_be_reached_is_one_sentence(session, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot be had from the hub") as caught:
        models.pull(session, "org/not-here")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
