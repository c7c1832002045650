import errno
import os
import pathlib
import threading

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache

from strategy.prefix import KEY_BYTES
from workers.cache.disk_tier import DiskTier, DiskTiers, remove_stale

KEYS = [bytes([number]) * KEY_BYTES for number in range(8)]
CHECKSUM = "0" * 32


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


def test_strange_things_beside_the_folders_do_not_keep_stale_ones(root):
    (root / "a file").write_bytes(bytes(100))
    (root / "dangling").symlink_to("nowhere")
    (root / "new-b" / "dangling").symlink_to("nowhere")
    remove_stale(root, "new", limit_bytes=150)
    assert {folder.name for folder in root.iterdir()} == {"a file", "dangling", "new-b"}


# --- one tier


def part(value=1.0):
    entry = ArraysCache(1)
    entry[0] = mx.full((1, 2, 16, 4), value)
    return [entry]


def written(folder, keys=KEYS, limit_bytes=1 << 20):
    tier = DiskTier(folder, limit_bytes=limit_bytes)
    for number, key in enumerate(keys):
        tier.write(key, part(number), 16 * (number + 1))
    tier.flush()
    return tier


def test_tier_knows_what_an_earlier_one_wrote(tmp_path):
    written(tmp_path / "tier")
    found = DiskTier(tmp_path / "tier", limit_bytes=1 << 20)
    assert dict(found.num_tokens_by_key) == {key: 16 * (number + 1) for number, key in enumerate(KEYS)}
    entries, num_tokens = found.read(KEYS[2])
    assert num_tokens == 48
    assert mx.array_equal(entries[0][0], part(2)[0][0]).item()


@pytest.mark.parametrize(
    "name",
    [
        f"{KEYS[0].hex()}-{CHECKSUM}-99999999999.safetensors",
        f"{KEYS[0].hex()}-{CHECKSUM}-9999999999.safetensors",
        f"{KEYS[0].hex()}-{CHECKSUM}-\u00b2.safetensors",
        f"{KEYS[0].hex()}-{CHECKSUM}-\u0663.safetensors",
        f"{KEYS[0].hex()}-{CHECKSUM}-0.safetensors",
        f"{KEYS[0].hex()}-{CHECKSUM}--5.safetensors",
        f"{KEYS[0].hex()[:-2]} a-{CHECKSUM}-5.safetensors",
        f"{KEYS[0].hex()}-{CHECKSUM}-5.partial",
        "--.safetensors",
        "notes.txt",
    ],
    ids=ascii,
)
def test_file_of_a_strange_name_is_ignored_and_removed(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    tier = DiskTier(tmp_path, limit_bytes=1 << 20)
    tier.flush()
    assert tier.num_tokens_by_key == []
    assert (tier.num_ignored, tier.num_bytes, list(tmp_path.iterdir())) == (1, 0, [])


def test_what_is_no_file_is_never_taken_for_a_part(tmp_path):
    name = f"{KEYS[0].hex()}-{CHECKSUM}-5.safetensors"
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    (tmp_path / name.replace("-5", "-6")).mkdir()
    tier = DiskTier(tmp_path, limit_bytes=1 << 20)
    tier.flush()
    assert tier.num_tokens_by_key == []
    assert tier.read(KEYS[0]) is None
    assert not (tmp_path / name).is_symlink()


def test_of_two_files_of_one_key_one_is_kept(tmp_path):
    tier = written(tmp_path, KEYS[:1])
    (tmp_path / f"{KEYS[0].hex()}-{CHECKSUM}-5.safetensors").write_bytes(b"x")
    again = DiskTier(tmp_path, limit_bytes=1 << 20)
    again.flush()
    assert len(again.num_tokens_by_key) == len(list(tmp_path.iterdir())) == 1
    assert tier.num_ignored == 0


def test_tier_stays_within_its_limit_least_recently_used_first(tmp_path):
    size = written(tmp_path, KEYS[:1]).num_bytes
    tier = DiskTier(tmp_path, limit_bytes=3 * size + size // 2)
    for number, key in enumerate(KEYS):
        tier.write(key, part(number), 16)
        assert tier.num_bytes <= 3.5 * size
        tier.read(KEYS[0])
    tier.flush()
    assert [key for key, _ in tier.num_tokens_by_key] == [KEYS[6], KEYS[7], KEYS[0]]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == tier.num_bytes


def test_tier_that_opens_with_less_room_gives_up_the_oldest(tmp_path):
    size = written(tmp_path).num_bytes // len(KEYS)
    tier = DiskTier(tmp_path, limit_bytes=2 * size + size // 2)
    tier.flush()
    assert len(tier.num_tokens_by_key) == len(list(tmp_path.iterdir())) == 2


def test_opening_a_tier_waits_for_no_other_and_knows_what_is_still_being_written(tmp_path, monkeypatch):
    tiers, may_write = DiskTiers(tmp_path, "model"), threading.Event()
    do = DiskTier._do
    monkeypatch.setattr(DiskTier, "_do", lambda self, task: may_write.wait(30) and do(self, task))
    first = tiers.open(limit_bytes=1 << 20, layers=(0, 4))
    first.write(KEYS[0], part(), 16)
    assert tiers.open(limit_bytes=1 << 20, layers=(0, 5)).num_tokens_by_key == []
    assert tiers.open(limit_bytes=1 << 20, layers=(0, 4)).num_tokens_by_key == [(KEYS[0], 16)]
    tiers.close()
    assert not list(tmp_path.rglob("*.safetensors"))
    may_write.set()
    first.flush()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


class Full:
    """Stands in for a disk without room: nothing but the beginning of a file can be written."""

    def __init__(self, monkeypatch):
        self._write = pathlib.Path.write_bytes
        self.is_full = True
        monkeypatch.setattr(pathlib.Path, "write_bytes", self._written(self))

    @staticmethod
    def _written(full):
        def write_bytes(path, content):
            if not full.is_full:
                return full._write(path, content)
            full._write(path, content[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

        return write_bytes


def test_what_a_full_disk_has_no_room_for_is_not_kept_and_leaves_nothing(tmp_path, monkeypatch, caplog):
    full = Full(monkeypatch)
    tier = DiskTier(tmp_path, limit_bytes=1 << 30)
    for number, key in enumerate(KEYS[:3]):
        tier.write(key, part(number), 16)
    tier.flush()
    assert (tier.num_tokens_by_key, tier.num_bytes) == ([], 0)
    assert tier.read(KEYS[0]) is None
    assert list(tmp_path.iterdir()) == []
    assert "No space left" in caplog.text
    full.is_full = False
    tier.write(KEYS[0], part(7.0), 16)
    entries, num_tokens = tier.read(KEYS[0])
    assert (entries[0][0].max().item(), num_tokens) == (7.0, 16)
    assert len(list(tmp_path.iterdir())) == 1
