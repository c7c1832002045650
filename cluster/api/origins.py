"""Which web pages may use the API: none but those of this machine, and of the origins that are configured.

A browser sends what any page asks for, and a page whose name was pointed at this machine (DNS rebinding) may read the
answers. Both name themselves: in Host, whose name is then not this machine's, and in Origin or Sec-Fetch-Site. Where the
API can be reached from elsewhere it asks for a key, which no page has, so any name will do.

A page of a configured origin is let through, and told so in the headers that browsers want (CORS); what a browser asks before
(preflight) carries no key and is answered without one.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.api.failures import error_response
from cluster.settings import ApiSettings
from protocol.errors import ApiError

ANY = b"*"
# Of an answer, what pages may read beside its body.
_EXPOSED = ("X-Tandem-Strategy", "X-Request-Id", "Retry-After")
_PREFLIGHT_AGE_S = 600


def origin_rules(api: ApiSettings) -> list[Middleware]:
    """What stands before everything else: who is refused, and what browsers are told."""
    refusing = Middleware(Origins, any_name=api.asks_for_key, allowed=api.cors)
    if not api.cors:
        return [refusing]
    telling = Middleware(
        CORSMiddleware,
        allow_origins=api.cors,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=_EXPOSED,
        max_age=_PREFLIGHT_AGE_S,
        allow_private_network=True,
    )
    return [refusing, telling]


class Forbidden(ApiError):
    """A page of a browser, or a name, that may not use this API."""

    status = 403
    error_type = "invalid_request_error"
    code = "forbidden_origin"


class Origins:
    """Refuses requests for other names than this machine's, unless `any_name`, and those of pages that are neither of this machine
    nor `allowed`.
    """

    def __init__(self, app: ASGIApp, *, any_name: bool, allowed: Collection[str]) -> None:
        self._app = app
        self._any_name = any_name
        self._allowed = frozenset(origin.encode() for origin in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._why_not(dict(scope["headers"]))):
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _why_not(self, headers: dict[bytes, bytes]) -> Forbidden | None:
        host = _name(b"//" + headers.get(b"host", b"localhost"))
        if not self._any_name and not _is_ours(host):
            return Forbidden(f"{host[:200]} is no name of this machine; use its address, or set an API key")
        if ANY in self._allowed or headers.get(b"origin") in self._allowed or not _is_foreign(headers, host):
            return None
        return Forbidden("pages of other sites may not use this API; api.cors lists those that may")


def _is_foreign(headers: dict[bytes, bytes], host: str) -> bool:
    """Whether a page of another site sent this. host: the name that it was sent to."""
    origin = headers.get(b"origin")
    if origin is None:
        return headers.get(b"sec-fetch-site") == b"cross-site"
    return _name(origin) != host and not _is_ours(_name(origin))


def _is_ours(name: str) -> bool:
    """No site of the internet has a name without a dot, and a page of no site has none at all."""
    if not name:
        return False
    return "." not in name or name.endswith(".localhost") or _is_address(name)


def _name(url: bytes) -> str:
    """The host of a URL in lower case; empty for what is none."""
    try:
        return urlsplit(url.decode("latin-1")).hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
