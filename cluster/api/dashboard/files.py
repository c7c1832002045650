"""The files that the page is made of: read once, sent as they are, and asked for again by what they hold.

Everything in the folder `page` beside this is one of them; there is no other.
"""

import functools
import hashlib
from importlib.resources import files
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from protocol.errors import NotFound

INDEX = "index.html"
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
# The page runs its own files and asks this server, nobody else, and no other page may hold it.
_POLICY = "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
SAFE_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class _PageFile(NamedTuple):
    """etag: changes with what it holds."""

    content: bytes
    media_type: str
    etag: str


def file_response(name: str, request: Request) -> Response:
    """The file, or that the client has it already. Raises NotFound."""
    found = _files().get(name)
    if found is None:
        raise NotFound(f"there is no file {name[:100]} of the dashboard")
    headers = SAFE_HEADERS | {"ETag": found.etag, "Cache-Control": "no-cache", "Vary": "Accept"}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")]
    if found.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(found.content, headers=headers, media_type=found.media_type)


def takes_html(accept: str | None) -> bool:
    """Whether an Accept header takes a page, as that of a browser does, and as none does."""
    kinds = [kind.lower().replace(" ", "").partition(";") for kind in (accept or "*/*").split(",")]
    return any(name in ("text/html", "text/*", "*/*") and not _is_refused(parameters) for name, _, parameters in kinds)


def _is_refused(parameters: str) -> bool:
    """Whether its weight is nothing."""
    return any(part.startswith("q=0") and not part.strip("q=0.") for part in parameters.split(";"))


@functools.cache
def _files() -> dict[str, _PageFile]:
    found = {}
    for entry in files(__package__).joinpath("page").iterdir():
        media_type = _TYPES.get(f".{entry.name.rpartition('.')[2]}")
        if media_type is not None:
            content = entry.read_bytes()
            etag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
            found[entry.name] = _PageFile(content, media_type, etag)
    return found
