"""The tokens that let workers in from other machines: given out, listed, taken back."""

import re
import time
from collections.abc import Mapping
from datetime import datetime

from cluster.cli.session import Session
from cluster.membership.invitations import Invitation, InvitationBook
from protocol.errors import TandemError, UsageError
from protocol.host_specs import read_host_specs
from protocol.join_token import make_token
from protocol.transport.addressing import advertised, own_networks, permitted_here

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration_s(text: str) -> float:
    """Seconds of "90s", "30m", "1h" or "7d". Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if match is None or int(match[1]) == 0:
        raise UsageError(f'--expires {text!r} is no time: give one such as "30m", "1h" or "7d"')
    return float(int(match[1]) * _SECONDS[match[2]])


def new(session: Session, uses: int, lasts_s: float) -> list[str]:
    """A new token, as the command that joins another machine by it; more lines where the machine has several addresses.

    Raises:
        TandemError: no cluster was started here yet, or it can be reached from nowhere.
    """
    desired = session.home.read_desired()
    settings = session.running_settings()
    if desired is None or not desired.port or settings is None:
        raise TandemError("no cluster was started here yet; run `./launch.sh start` first")
    networks = own_networks()
    listen = permitted_here(settings.links.addresses, settings.links.names, networks)
    reached = advertised(listen, desired.port, networks)
    if not reached:
        raise TandemError(
            "other machines cannot reach this one: links.listen and links.exclude leave none of its addresses"
        )
    token = make_token(desired.public_key, _book(session).new(uses, lasts_s))
    commands = [
        f"./launch.sh worker --join {address.endpoint.removeprefix('tcp://')} --token {token}" for address in reached
    ]
    return [commands[0], *(f"# or, over another network: {command}" for command in commands[1:])]


def table(tokens: Mapping[str, Invitation], guests: Mapping[str, list[str]], now: float) -> list[str]:
    """A line for each token that can still let somebody in, or has. guests: names by token."""
    lines = [f"{'id':<10}{'uses left':<11}{'expires':<18}joined by it"]
    for number in sorted(tokens.keys() | guests.keys()):
        token = tokens.get(number)
        uses = "revoked" if token is None else "any" if token.uses is None else str(token.uses)
        lines.append(f"{number:<10}{uses:<11}{_expiry(token, now):<18}{', '.join(guests.get(number, ())) or '-'}")
    return lines


def _expiry(token: Invitation | None, now: float) -> str:
    if token is None or token.expires_at is None:
        return "-"
    if now >= token.expires_at:
        return "expired"
    return datetime.fromtimestamp(token.expires_at).strftime("%Y-%m-%d %H:%M")  # noqa: DTZ006 - the user's own time


def listed(session: Session) -> list[str]:
    """The tokens of this home."""
    known = _book(session).read()
    guests: dict[str, list[str]] = {}
    for name, guest in known.guests.items():
        guests.setdefault(guest.token, []).append(name)
    return table(known.tokens, guests, time.time()) if known.tokens or guests else ["no tokens"]


def revoke(session: Session, number: str, *, with_guests: bool) -> None:
    """Take a token back; with_guests: those that joined by it are ended. Raises UsageError."""
    _book(session).revoke(number, with_guests=with_guests)


def _book(session: Session) -> InvitationBook:
    session.home.create()
    return InvitationBook(session.home, time.time, read_host_specs())
