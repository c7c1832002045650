"""A model is found by its digest wherever it lies in the folders of this machine."""

import json
import os
from pathlib import Path

import pytest

from protocol import model_search
from protocol.model_digest import model_digest
from protocol.model_search import find_model, model_folders, model_name


def make(folder, **config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("place", ["mine", "models--org--name/snapshots/abc123"])
def test_model_is_found_beside_others_and_as_the_hub_keeps_it(tmp_path, place):
    make(tmp_path / "other", hidden_size=1)
    wanted = make(tmp_path / place, hidden_size=2)
    assert find_model(model_digest(wanted), [tmp_path / "missing", tmp_path], tmp_path / "kept") == wanted


def test_model_that_is_not_there_is_none(tmp_path):
    make(tmp_path / "other", hidden_size=1)
    assert find_model("0" * 32, [tmp_path], tmp_path / "kept") is None


@pytest.fixture
def read(monkeypatch):
    """The names of the models whose digests were computed."""
    names = []

    def digest(path):
        names.append(path.name)
        return model_digest(path)

    monkeypatch.setattr(model_search, "model_digest", digest)
    return names


def test_each_model_is_read_once_until_it_is_written(tmp_path, read):
    places = [make(tmp_path / name, hidden_size=number) for number, name in enumerate("abc")]
    wanted = model_digest(places[1])
    assert find_model(wanted, [tmp_path], tmp_path / "kept") == places[1]
    assert read == ["a", "b"]
    for _ in range(2):
        assert find_model("0" * 32, [tmp_path], tmp_path / "kept") is None
    assert find_model(wanted, [tmp_path], tmp_path / "kept") == places[1]
    assert read == ["a", "b", "c"]
    (places[1] / "config.json").write_text(json.dumps({"hidden_size": 9}))
    os.utime(places[1] / "config.json", ns=(1, 1))
    assert find_model(wanted, [tmp_path], tmp_path / "kept") is None
    assert find_model(model_digest(places[1]), [tmp_path], tmp_path / "kept") == places[1]
    assert read == ["a", "b", "c", "b"]


def test_models_are_found_where_what_is_known_of_them_is_damaged_or_cannot_be_kept(tmp_path, read):
    wanted = make(tmp_path / "a", hidden_size=1)
    (tmp_path / "kept").write_text("{")
    for kept in (tmp_path / "kept", tmp_path / "nowhere" / "kept"):
        assert find_model(model_digest(wanted), [tmp_path], kept) == wanted
    assert read == ["a", "a"]


def test_folders_are_the_checkouts_and_the_hubs(tmp_path):
    assert model_folders(tmp_path, {"HF_HOME": "/hf"})[1].as_posix() == "/hf/hub"
    assert model_folders(tmp_path, {"HF_HUB_CACHE": "/hub", "HF_HOME": "/hf"})[1].as_posix() == "/hub"
    assert model_folders(tmp_path, {})[0] == tmp_path / "models"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/tandem-demo", "tandem-demo"),
        ("/hub/models--acme--tiny-chat/snapshots/0123abcd", "acme/tiny-chat"),
        ("/hub/models--gpt2/snapshots/0123abcd", "gpt2"),
        ("/mine/snapshots/first", "first"),
    ],
)
def test_model_has_its_name_on_the_hub_or_that_of_its_directory(path, name):
    assert model_name(Path(path)) == name
