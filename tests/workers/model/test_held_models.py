"""What lies on a machine's disk: whole models, parts that were fetched, downloads that broke off, and nothing else."""

import json
import shutil

import pytest

from protocol.home import Home
from protocol.model_digest import model_digest
from tests.support.weights_hosts import SourceHost, fetch, fetcher
from workers.model.held_models import models_here
from workers.zoo import make_tiny_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.create()
    return home


def held(home, *folders):
    return [each.model for each in models_here(home, folders)]


def test_part_that_was_fetched_is_told_from_the_whole(llama, home):
    host = SourceHost("a", llama)
    fetching = fetcher(home.models, host)
    fetch(fetching, model_digest(llama), [host], (0, 2))
    (part,) = held(home)
    assert (part.digest, part.name, part.source) == (model_digest(llama), "", "fetched")
    assert 0 < part.held_bytes < part.num_bytes
    fetch(fetching, model_digest(llama), [host], (0, 6))
    (whole,) = held(home)
    assert whole.is_complete
    assert whole.num_bytes == part.num_bytes


def test_models_of_people_and_of_the_hub_are_named_as_they_are_known(llama, home, tmp_path):
    hub = tmp_path / "hub" / "models--org--tiny" / "snapshots" / "abc"
    shutil.copytree(llama, hub)
    home.remember_model(model_digest(llama), llama)
    found = held(home, tmp_path / "hub", llama.parent)
    assert [(each.name, each.source, each.is_complete) for each in found] == [
        ("org/tiny", "hub", True), ("llama", "folder", True),
    ]  # fmt: skip
    assert {each.digest for each in found} == {model_digest(llama)}


def test_download_that_broke_off_is_not_complete(llama, home, tmp_path):
    copy = shutil.copytree(llama, tmp_path / "models" / "copy")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (found,) = held(home, tmp_path / "models")
    assert (found.is_complete, found.num_bytes) == (False, None)
    assert found.held_bytes > 0


def test_what_is_no_model_is_not_listed(llama, home, tmp_path):
    folder = tmp_path / "models"
    for name in ("without-weights", "broken", "no-text"):
        (folder / name).mkdir(parents=True)
        shutil.copy(llama / "config.json", folder / name)
    (folder / "broken" / "model.safetensors").write_bytes(b"\xff")
    (folder / "broken" / "model.safetensors.index.json").write_text("{")
    (folder / "no-text" / "model.safetensors.index.json").write_bytes(b'{"weight_map": {"\xff": "\xff"}}')
    (home.models / ("0" * 32)).mkdir(parents=True)
    home.remember_model("f" * 32, tmp_path / "gone")
    assert held(home, folder, tmp_path / "nowhere") == []
