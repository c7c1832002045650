"""Who may join from elsewhere: tokens that were given out, and the workers that came by one and need none again.

A token's secret is given out once and kept as a hash (SHA-256 of 128 random bits, which nobody guesses). `Invitations` is a
value; `InvitationBook` keeps it in a file of the home, which the command line and the coordinator both write.
"""

import hashlib
import hmac
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from protocol.errors import TandemError, UsageError
from protocol.home import Home
from protocol.host_specs import HostSpecs, difference
from protocol.join_token import ID_CHARACTERS, make_id, make_secret
from protocol.messages import Join

FILE = "invitations.json"


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """One token. digest: SHA-256 of its secret, hex; uses: workers that it may still let in, None for any number; made_at,
    expires_at: Unix seconds, the latter None for never.
    """

    digest: str
    uses: int | None
    made_at: float
    expires_at: float | None


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that joined by a token, which is known by its key from then on. is_here: it has not left."""

    public_key: str
    host: str
    token: str
    is_here: bool = True


class NotInvited(TandemError):
    """A worker that may not join; the sentence is for whoever started it."""


class Invitations(msgspec.Struct, frozen=True):
    """Tokens by id, and guests by name."""

    tokens: dict[str, Invitation] = {}
    guests: dict[str, Guest] = {}

    def with_token(self, number: str, invitation: Invitation) -> "Invitations":
        """One token more."""
        return Invitations(self.tokens | {number: invitation}, self.guests)

    def without_token(self, number: str, *, with_guests: bool) -> "Invitations":
        """One token less; with_guests: those that came by it are none any more. Raises UsageError for an unknown one."""
        if number not in self.tokens and not any(guest.token == number for guest in self.guests.values()):
            raise UsageError(f"there is no token {number}; `./launch.sh token list` names those there are")
        tokens = {name: token for name, token in self.tokens.items() if name != number}
        guests = {name: guest for name, guest in self.guests.items() if not (with_guests and guest.token == number)}
        return Invitations(tokens, guests)

    def admitting(self, join: Join, now: float) -> "Invitations":
        """With this worker as a guest: one already, or one whose token lets it in. now: Unix seconds. Raises NotInvited."""
        key = join.peer.public_key
        guest = self.guests.get(join.name)
        if guest is not None and hmac.compare_digest(guest.public_key, key):
            return self if guest.is_here else self.with_guest(join.name, msgspec.structs.replace(guest, is_here=True))
        number, secret = join.secret[:ID_CHARACTERS], join.secret[ID_CHARACTERS:]
        token = self._proven(number, secret, now)
        if guest is not None:
            raise NotInvited(f"there is another worker named {join.name}; give this one a name of its own with --name")
        left = token.uses if token.uses is None else token.uses - 1
        used = self.with_token(number, msgspec.structs.replace(token, uses=left))
        return used.with_guest(join.name, Guest(public_key=key, host=join.host, token=number))

    def without_guest(self, name: str) -> "Invitations":
        """A guest has left, who may come again."""
        guest = self.guests.get(name)
        return self if guest is None else self.with_guest(name, msgspec.structs.replace(guest, is_here=False))

    def with_guest(self, name: str, guest: Guest) -> "Invitations":
        """A guest as it is now."""
        return Invitations(self.tokens, self.guests | {name: guest})

    def _proven(self, number: str, secret: str, now: float) -> Invitation:
        """The token whose secret this is, which may be told why it lets nobody in."""
        token = self.tokens.get(number)
        digest = digest_of(secret)
        if token is None or not hmac.compare_digest(token.digest, digest):
            raise NotInvited(
                "the token is not one of this cluster, or was revoked; make one with `./launch.sh token new`"
            )
        if token.expires_at is not None and now >= token.expires_at:
            raise NotInvited("the token has expired; make a new one with `./launch.sh token new`")
        if token.uses == 0:
            raise NotInvited("the token was used up; make a new one with `./launch.sh token new`")
        return token


def digest_of(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


class _Version(NamedTuple):
    """By which a file that was written again is known."""

    number: int
    written_ns: int


class InvitationBook:
    """The invitations of one home, as they are on disk. now: Unix seconds; about: this host, with which guests' agree;
    allow_mixed: as of `difference`.
    """

    def __init__(self, home: Home, now: Callable[[], float], about: HostSpecs, *, allow_mixed: bool = False):
        self._home = home
        self._now = now
        self._about = about
        self._allow_mixed = allow_mixed
        self._file = home.root / FILE
        self._version: _Version | None = None
        self._known = Invitations()

    def __repr__(self) -> str:
        return f"InvitationBook({self._file})"

    def read(self) -> Invitations:
        """What is on disk now. A damaged file invites nobody. Raises OSError where it cannot be read."""
        try:
            status = self._file.stat()
        except FileNotFoundError:
            self._version, self._known = None, Invitations()
            return self._known
        version = _Version(status.st_ino, status.st_mtime_ns)
        if version != self._version:
            try:
                self._known = msgspec.json.decode(self._file.read_bytes(), type=Invitations)
            except ValueError:
                self._known = Invitations()
            self._version = version
        return self._known

    def new(self, uses: int | None, lasts_s: float | None) -> str:
        """A new token's secret part with its id (hex), for `make_token`."""
        number, secret = make_id(), make_secret()
        now = self._now()
        expires_at = None if lasts_s is None else now + lasts_s
        invitation = Invitation(digest=digest_of(secret), uses=uses, made_at=now, expires_at=expires_at)
        self._change(lambda known: known.with_token(number, invitation))
        return number + secret

    def revoke(self, number: str, *, with_guests: bool) -> None:
        """A token lets nobody in any more. Raises UsageError for one that is not there."""
        self._change(lambda known: known.without_token(number, with_guests=with_guests))

    @property
    def names(self) -> frozenset[str]:
        """Guests that have not left, and may stay."""
        return frozenset(name for name, guest in self.read().guests.items() if guest.is_here)

    def left(self, name: str) -> None:
        """A guest is here no more."""
        if name in self.names:
            self._change(lambda known: known.without_guest(name))

    def admit(self, join: Join) -> None:
        """Let a worker in that may come, and remember it. Raises NotInvited."""
        now = self._now()
        admitted = self.read().admitting(join, now)
        if why := difference(self._about, join.about, allow_mixed=self._allow_mixed):
            raise NotInvited(why)
        if admitted is not self._known:
            self._change(lambda known: known.admitting(join, now))

    def _change(self, change: Callable[[Invitations], Invitations]) -> None:
        with self._home.writing():
            self._home.write_private(self._file, msgspec.json.encode(change(self.read())))
