"""Who may join from elsewhere: tokens with uses and an end, taken back, and workers that need none again."""

import msgspec
import pytest

from cluster.membership.invitations import FILE, InvitationBook, Invitations, NotInvited
from protocol.codec import PROTOCOL
from protocol.errors import UsageError
from protocol.home import Home
from protocol.host_specs import HostSpecs
from protocol.join_token import ID_CHARACTERS
from protocol.messages import Join
from protocol.values import Peer
from tests.support.manual_clock import ManualClock

ABOUT = HostSpecs(name="here", versions={"mlx": "1.0", "mlx-lm": "2.0"})


@pytest.fixture
def clock():
    return ManualClock(1000.0)


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def book(home, clock):
    return InvitationBook(home, clock, ABOUT)


def join(secret="", name="studio", key="k", about=ABOUT):
    peer = Peer(endpoint="tcp://10.0.0.2:5", public_key=key * 40)
    return Join(
        protocol=PROTOCOL,
        secret=secret,
        name=name,
        host="h",
        pid=7,
        peer=peer,
        data=peer,
        memory_limit_bytes=9,
        about=about,
    )


def test_token_lets_in_as_many_as_it_has_uses(book):
    secret = book.new(uses=2, lasts_s=60)
    book.admit(join(secret, "one", "a"))
    book.admit(join(secret, "two", "b"))
    with pytest.raises(NotInvited, match="was used up"):
        book.admit(join(secret, "three", "c"))
    assert book.names == {"one", "two"}


def test_token_without_a_number_of_uses_lets_in_any(book):
    secret = book.new(uses=None, lasts_s=None)
    for number in range(5):
        book.admit(join(secret, f"mac-{number}", str(number)))
    assert len(book.names) == 5


def test_who_joined_needs_no_token_again_and_uses_none_up(book, clock):
    secret = book.new(uses=1, lasts_s=60)
    book.admit(join(secret))
    clock.now += 10**6
    book.admit(join(""))
    book.left("studio")
    assert book.names == frozenset()
    book.admit(join(""))
    assert book.names == {"studio"}


def test_expired_token_lets_nobody_in(book, clock):
    secret = book.new(uses=1, lasts_s=60)
    clock.now += 60
    with pytest.raises(NotInvited, match="has expired"):
        book.admit(join(secret))


def test_revoked_token_lets_nobody_in_and_may_end_those_who_came_by_it(book):
    secret = book.new(uses=5, lasts_s=60)
    number = secret[:ID_CHARACTERS]
    book.admit(join(secret))
    book.revoke(number, with_guests=False)
    with pytest.raises(NotInvited, match="or was revoked"):
        book.admit(join(secret, "other", "o"))
    assert book.names == {"studio"}
    book.revoke(number, with_guests=True)
    assert book.names == frozenset()
    with pytest.raises(NotInvited):
        book.admit(join(""))


def test_token_that_is_not_there_cannot_be_revoked(book):
    with pytest.raises(UsageError, match="there is no token 12345678"):
        book.revoke("12345678", with_guests=True)


@pytest.mark.parametrize(
    "change", [lambda text: text[:-1], lambda text: text[:-1] + "!", lambda _: "", lambda text: text * 2]
)
def test_wrong_secret_lets_nobody_in_and_is_not_told_why(book, change):
    secret = book.new(uses=1, lasts_s=60)
    with pytest.raises(NotInvited, match="not one of this cluster"):
        book.admit(join(change(secret)))


def test_name_of_another_guest_is_refused_and_uses_nothing_up(book):
    secret = book.new(uses=2, lasts_s=60)
    book.admit(join(secret, "studio", "a"))
    with pytest.raises(NotInvited, match="another worker named studio"):
        book.admit(join(secret, "studio", "b"))
    book.admit(join(secret, "laptop", "b"))


@pytest.mark.parametrize("name", ["mlx", "mlx-lm"])
def test_other_version_of_what_computes_is_refused_with_both_and_uses_nothing_up(book, name):
    secret = book.new(uses=1, lasts_s=60)
    other = msgspec.structs.replace(ABOUT, versions=ABOUT.versions | {name: "0.9"})
    with pytest.raises(NotInvited, match=rf"has {name} 0\.9 and this cluster {ABOUT.versions[name]}"):
        book.admit(join(secret, about=other))
    book.admit(join(secret))


def test_other_patch_level_of_mlx_is_let_in_where_that_is_allowed(book, home, clock):
    secret = book.new(uses=1, lasts_s=None)
    about = msgspec.structs.replace(ABOUT, versions=ABOUT.versions | {"mlx": "1.0.1"})
    with pytest.raises(NotInvited, match="--allow-mixed"):
        book.admit(join(secret, about=about))
    mixed = InvitationBook(home, clock, ABOUT, allow_mixed=True)
    mixed.admit(join(secret, about=about))
    assert mixed.names == {"studio"}


def test_secrets_are_not_kept_and_the_file_is_its_owners_alone(book, home):
    secret = book.new(uses=1, lasts_s=60)
    file = home.root / FILE
    assert secret[ID_CHARACTERS:] not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_another_process_writes_is_seen(book, home, clock):
    other = InvitationBook(home, clock, ABOUT)
    secret = other.new(uses=1, lasts_s=60)
    book.admit(join(secret))
    assert other.names == {"studio"}
    assert InvitationBook(home, clock, ABOUT).names == {"studio"}


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b'{"tokens": 3}', b'{"tokens": {"\xff": 1}}', b"\xff\xfe"])
def test_damaged_file_invites_nobody_and_is_replaced(book, home, content):
    secret = book.new(uses=1, lasts_s=60)
    (home.root / FILE).write_bytes(content)
    assert book.read() == Invitations()
    with pytest.raises(NotInvited):
        book.admit(join(secret))
    book.admit(join(book.new(uses=1, lasts_s=60)))
