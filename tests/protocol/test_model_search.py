"""A model is found by its digest wherever it lies in the folders of this machine."""

import json

import pytest

from protocol.model_digest import model_digest
from protocol.model_search import find_model, model_folders


def make(folder, **config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("place", ["mine", "models--org--name/snapshots/abc123"])
def test_model_is_found_beside_others_and_as_the_hub_keeps_it(tmp_path, place):
    make(tmp_path / "other", hidden_size=1)
    wanted = make(tmp_path / place, hidden_size=2)
    assert find_model(model_digest(wanted), [tmp_path / "missing", tmp_path]) == wanted


def test_model_that_is_not_there_is_none(tmp_path):
    make(tmp_path / "other", hidden_size=1)
    assert find_model("0" * 32, [tmp_path]) is None


def test_folders_are_the_checkouts_and_the_hubs(tmp_path):
    assert model_folders(tmp_path, {"HF_HOME": "/hf"})[1].as_posix() == "/hf/hub"
    assert model_folders(tmp_path, {"HF_HUB_CACHE": "/hub", "HF_HOME": "/hf"})[1].as_posix() == "/hub"
    assert model_folders(tmp_path, {})[0] == tmp_path / "models"
