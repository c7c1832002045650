"""Who may use the API: whoever sends one of its keys, as often and as much as that key allows. And who asks, for whoever serves.

Where no key is configured everybody is let in, and the key that they send tells them apart all the same.
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Collection

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.api.failures import TALLY, error_response
from cluster.api.key_limits import KeyUse
from cluster.api.surface import Dialect, Surface
from cluster.serving.tally import Tally
from cluster.settings import ApiSettings
from protocol.errors import RateLimited, Unauthorized

Dialects = Callable[[str], Surface | Dialect]

# What is described holds for every Tandem, and a browser that opens a page sends no key.
OPEN_PATHS = frozenset({"/", "/health", "/openapi.json", "/docs"})
# The dashboard's own paths, which show less to who has no key.
_OPEN_FOLDER = "/dashboard/"
# In a request's scope: who sent it.
CALLER = "tandem.caller"


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """digest: of the key that was sent, whichever it is; name: of a key that has one; address: where it came from; may_act: it has a
    key, or none is asked for.
    """

    digest: str
    name: str
    address: str
    may_act: bool

    @property
    def client(self) -> str:
        """Those with one key from one address are one client."""
        return f"{self.digest} {self.address}"


class Keys:
    """The keys by their digests: how long one is, or how much of one is right, is not to be told by a clock."""

    def __init__(self, api: ApiSettings) -> None:
        unnamed = {} if api.api_key is None else {_digest(api.api_key.encode()): ""}
        self._names = unnamed | {_digest(each.key.encode()): each.name for each in api.keys}

    def __repr__(self) -> str:
        return f"Keys({len(self._names)})"

    def caller(self, scope: Scope) -> Caller:
        """Who sent a request; every key is compared."""
        digest = _digest(_key_in(dict(scope["headers"])))
        same = [name for known, name in self._names.items() if hmac.compare_digest(known, digest)]
        address = scope["client"][0] if scope.get("client") else ""
        may_act = bool(same) or not self._names
        return Caller(digest=digest, name=same[0] if same else "", address=address, may_act=may_act)


class KeyGate:
    """Lets through what carries one of the keys, and the open paths; what takes its place or its tokens, as far as the key allows.

    limited: the paths of requests that generate.
    """

    def __init__(
        self,
        app: ASGIApp,
        api: ApiSettings,
        dialect: Dialects,
        limited: Collection[str],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._keys = Keys(api)
        self._uses = {each.name: KeyUse(each) for each in api.keys}
        self._dialect = dialect
        self._limited = frozenset(limited)
        self._now = now

    def __repr__(self) -> str:
        return f"KeyGate({self._keys})"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        caller = scope[CALLER] = self._keys.caller(scope)
        if not caller.may_act and not _is_open(scope["path"]):
            error = Unauthorized("this cluster asks for an API key; send it as 'Authorization: Bearer KEY'")
            await error_response(error, self._dialect(scope["path"]).refusal)(scope, receive, send)
            return
        await self._within_limits(scope, receive, send)

    async def _within_limits(self, scope: Scope, receive: Receive, send: Send) -> None:
        use = self._uses.get(scope[CALLER].name) if scope["path"] in self._limited else None
        if use is None:
            await self._app(scope, receive, send)
            return
        tally: Tally = scope[TALLY]
        try:
            use.enter(tally, self._now())
        except RateLimited as error:
            await error_response(error, self._dialect(scope["path"]).refusal)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            use.leave(tally, self._now())


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(_OPEN_FOLDER)


def _key_in(headers: dict[bytes, bytes]) -> bytes:
    """As OpenAI's clients send it, in any case of the word, or as Anthropic's do."""
    kind, _, key = headers.get(b"authorization", b"").partition(b" ")
    return key.strip() if kind.lower() == b"bearer" else headers.get(b"x-api-key", b"")


def _digest(key: bytes) -> str:
    return hashlib.blake2b(key, digest_size=16).hexdigest()
