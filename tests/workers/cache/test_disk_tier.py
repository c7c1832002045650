import os

import pytest

from workers.cache.disk_tier import remove_stale


@pytest.fixture
def root(tmp_path):
    """Folders of 100 bytes each, the first opened longest ago; `new` is the model in use."""
    for age, name in enumerate(["new-a", "old-a", "older-a", "new-b"]):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "part").write_bytes(bytes(100))
        os.utime(folder, (age, age))
    return tmp_path


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        (400, {"new-a", "new-b", "old-a", "older-a"}),
        (399, {"new-a", "new-b", "older-a"}),
        (200, {"new-a", "new-b"}),
        (100, {"new-b"}),
    ],
)
def test_folders_beyond_the_limit_go_other_models_first_and_the_oldest_first(root, limit, left):
    remove_stale(root, "new", limit_bytes=limit)
    assert {folder.name for folder in root.iterdir()} == left


def test_folder_that_vanishes_meanwhile_is_no_error(root, monkeypatch):
    monkeypatch.setattr(type(root), "iterdir", lambda _: iter([root / "gone"]))
    remove_stale(root, "new", limit_bytes=0)
