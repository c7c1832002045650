"""A worker that was let in once finds its way back without a token: to the cluster that is meant, and to no other."""

import stat

import pytest

from protocol.errors import UsageError
from protocol.home import Home
from protocol.joined import FILE, read_joined, remember_joined, way_back

KEY, OTHER = "k" * 40, "o" * 40
AT, THEN, ELSEWHERE = "tcp://10.0.0.1:1", "tcp://10.0.0.7:1", "tcp://10.9.9.9:1"


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.create()
    return home


def test_what_was_joined_last_is_the_way_back_and_its_file_is_the_users_alone(home):
    remember_joined(home, "mini", KEY, AT)
    remember_joined(home, "mini", OTHER, ELSEWHERE)
    assert way_back(read_joined(home), None, None).public_key == OTHER
    assert way_back(read_joined(home), AT, None).public_key == KEY
    assert stat.S_IMODE((home.root / FILE).stat().st_mode) == 0o600


def test_cluster_is_known_at_every_address_that_let_the_worker_in(home):
    for endpoint in (AT, THEN, AT, THEN):
        remember_joined(home, "mini", KEY, endpoint)
    (known,) = read_joined(home)
    assert (known.endpoint, set(known.endpoints)) == (THEN, {AT, THEN})
    remember_joined(home, "mini", OTHER, ELSEWHERE)
    assert way_back(read_joined(home), AT, "mini").public_key == KEY


def test_addresses_and_clusters_that_are_kept_are_bounded(home):
    for number in range(100):
        remember_joined(home, "mini", KEY, f"tcp://10.0.0.{number}:1")
        remember_joined(home, f"w{number}", OTHER, AT)
    assert len(read_joined(home)) <= 64
    assert max(len(each.endpoints) for each in read_joined(home)) <= 8


def test_only_cluster_is_meant_whatever_its_address_is_now(home):
    remember_joined(home, "mini", KEY, AT)
    assert way_back(read_joined(home), ELSEWHERE, None).public_key == KEY


def test_one_of_several_clusters_is_not_guessed(home):
    remember_joined(home, "mini", KEY, AT)
    remember_joined(home, "mini", OTHER, THEN)
    with pytest.raises(UsageError, match=r"several clusters and none at 10\.9\.9\.9:1"):
        way_back(read_joined(home), ELSEWHERE, None)


def test_who_has_joined_nothing_needs_a_token(home):
    with pytest.raises(UsageError, match="this machine has not joined a cluster yet; give the --token"):
        way_back(read_joined(home), AT, None)
    remember_joined(home, "mini", KEY, AT)
    with pytest.raises(UsageError, match="worker studio has not joined"):
        way_back(read_joined(home), AT, "studio")


@pytest.mark.parametrize("content", [b"", b"{", b'[{"worker": 1}]', b'[{"worker": "\xff"}]', b"\xff"])
def test_damaged_file_is_as_none(home, content):
    (home.root / FILE).write_bytes(content)
    assert read_joined(home) == ()
    remember_joined(home, "mini", KEY, AT)
    assert len(read_joined(home)) == 1
