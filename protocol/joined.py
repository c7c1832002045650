"""The clusters elsewhere that workers of this home have joined: what it takes to come back without a token.

A worker that was let in once is known there by its key, so the way back is the coordinator's public key and an address. No
secret is among it; the file is readable by its user only all the same, like every other of the home.
"""

from collections.abc import Sequence

import msgspec

from protocol.errors import UsageError
from protocol.home import Home

FILE = "joined.json"
_MOST, _MOST_ENDPOINTS = 64, 8


class JoinedCluster(msgspec.Struct, frozen=True, kw_only=True):
    """A worker of this home belonged to the coordinator with that key (Z85 text), which let it in at these, the last one last."""

    worker: str
    public_key: str
    endpoints: tuple[str, ...]

    @property
    def endpoint(self) -> str:
        """Where it was let in last."""
        return self.endpoints[-1]


def read_joined(home: Home) -> tuple[JoinedCluster, ...]:
    """From the first to the last that was joined; none where the file is damaged."""
    try:
        return msgspec.json.decode((home.root / FILE).read_bytes(), type=tuple[JoinedCluster, ...])
    except (OSError, ValueError):
        return ()


def remember_joined(home: Home, worker: str, public_key: str, endpoint: str) -> None:
    """This worker belongs to that cluster now, which let it in at that endpoint. Raises OSError."""
    with home.writing():
        known = read_joined(home)
        joined = _with_endpoint(known, worker, public_key, endpoint)
        if not known or known[-1] != joined:
            others = [each for each in known if (each.worker, each.public_key) != (worker, public_key)]
            home.write_private(home.root / FILE, msgspec.json.encode((*others, joined)[-_MOST:]))


def _with_endpoint(known: Sequence[JoinedCluster], worker: str, public_key: str, endpoint: str) -> JoinedCluster:
    """It is known under earlier endpoints too: a service may have been told one of them."""
    earlier = next((each.endpoints for each in known if (each.worker, each.public_key) == (worker, public_key)), ())
    endpoints = (*(each for each in earlier if each != endpoint), endpoint)
    return JoinedCluster(worker=worker, public_key=public_key, endpoints=endpoints[-_MOST_ENDPOINTS:])


def way_back(known: Sequence[JoinedCluster], endpoint: str | None, worker: str | None) -> JoinedCluster:
    """What to come back with: to whoever let it in at that endpoint, or to the only cluster that it can be; without an endpoint
    to the last one joined. worker: the name that it had there, None for any.

    Raises:
        UsageError: there is none, or it could be one of several.
    """
    of_worker = [each for each in known if worker in (None, each.worker)]
    if not of_worker:
        who = "this machine" if worker is None else f"worker {worker}"
        raise UsageError(
            f"{who} has not joined a cluster yet; give the --token that `./launch.sh token new` prints there"
        )
    there = [each for each in of_worker if endpoint in each.endpoints]
    if endpoint is not None and not there and len({each.public_key for each in of_worker}) > 1:
        raise UsageError(
            f"this machine has joined several clusters and none at {endpoint.removeprefix('tcp://')}; "
            "give the --token of the one that is meant"
        )
    return (there or of_worker)[-1]
