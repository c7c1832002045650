"""Where `worker --join auto` goes: the door that is announced with the fingerprint of the key and proves to have it.

Pure but for what it is given: what is announced, and whether a door proves its key.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping

from cluster.membership.discovery import AnnouncedDoor, DiscoveryFailed, browse_by_mdns, fingerprint_of
from protocol.codec import PROTOCOL
from protocol.errors import TandemError
from protocol.transport.addressing import Network, interface_to, own_networks
from protocol.transport.proving import proves_key

_ANSWER_S = 1.5
_MOST_NAMED = 3
_INSTEAD = "give the address that `./launch.sh token new` prints in place of auto"

# Whether a door with that key (Z85 text) is at an endpoint.
Proves = Callable[[str, str], bool]


def find_cluster(public_key: str) -> str:
    """The endpoint of the cluster with that key, wherever this machine's networks announce it.

    Raises:
        TandemError: there is none, with what was found.
    """
    with contextlib.closing(browse_by_mdns()) as doors:
        try:
            return choose(public_key, doors, lambda endpoint, key: proves_key(endpoint, key, _ANSWER_S), own_networks())
        except DiscoveryFailed as error:
            raise TandemError(f"this machine cannot look for clusters ({error}); {_INSTEAD}") from None


def choose(public_key: str, doors: Iterable[AnnouncedDoor], proves: Proves, networks: Mapping[Network, str]) -> str:
    """The first endpoint of the announced door with that key that proves to have it; of each door, those in this machine's
    networks come first. Raises TandemError.
    """
    wanted = fingerprint_of(public_key)
    found: list[AnnouncedDoor] = []
    for door in doors:
        found.append(door)
        if door.fingerprint == wanted and door.protocol == PROTOCOL:
            for endpoint in sorted(door.endpoints, key=lambda each: interface_to(each, networks) is None):
                if proves(endpoint, public_key):
                    return endpoint
    raise TandemError(_why_none([door for door in found if door.fingerprint == wanted], found))


def _why_none(of_key: list[AnnouncedDoor], found: list[AnnouncedDoor]) -> str:
    if not found:
        return (
            f"no cluster was found in the networks of this machine; {_INSTEAD}, and let Python in where a firewall asks"
        )
    if not of_key:
        return (
            f"other clusters were found ({_hosts(found)}), not the one that is meant; {_INSTEAD}, or take a new token"
        )
    if all(door.protocol != PROTOCOL for door in of_key):
        return f"the cluster on {_hosts(of_key)} has another version of Tandem; bring both checkouts to the same commit"
    endpoints = ", ".join(endpoint.removeprefix("tcp://") for door in of_key for endpoint in door.endpoints)
    return (
        f"the cluster on {_hosts(of_key)} answers at none of its addresses ({endpoints or 'it names none'}); {_INSTEAD}"
    )


def _hosts(doors: list[AnnouncedDoor]) -> str:
    """A few of them."""
    names = sorted({door.host for door in doors})
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
