"""Which web pages may use the API: none but those of this machine.

A browser sends what any page asks for, and a page whose name was pointed at this machine (DNS rebinding) may read the
answers. Both name themselves: in Host, whose name is then not this machine's, and in Origin or Sec-Fetch-Site. Where the
API can be reached from elsewhere it asks for a key, which no page has, so any name will do.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.api.failures import error_response
from protocol.errors import ApiError


class Forbidden(ApiError):
    """A page of a browser, or a name, that may not use this API."""

    status = 403
    error_type = "invalid_request_error"
    code = "forbidden_origin"


class Origins:
    """Refuses requests for other names than this machine's, unless `any_name`, and those of foreign pages."""

    def __init__(self, app: ASGIApp, *, any_name: bool) -> None:
        self._app = app
        self._any_name = any_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._why_not(dict(scope["headers"]))):
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _why_not(self, headers: dict[bytes, bytes]) -> Forbidden | None:
        host = _name(b"//" + headers.get(b"host", b"localhost"))
        if not self._any_name and not _is_ours(host):
            return Forbidden(f"{host[:200]} is no name of this machine; use its address, or set an API key")
        return Forbidden("pages of other sites may not use this API") if _is_foreign(headers, host) else None


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
