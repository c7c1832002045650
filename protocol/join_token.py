"""The join token: what admits a worker. It carries the coordinator's public key and a secret.

Text form: base64url of the key's 40 characters of Z85 (which would need quoting in a shell) and random bytes: 16 of the
secret, before them 4 of the token's id where there are several. Workers take id and secret together, as hex.
"""

import base64
import binascii
import secrets

from protocol.errors import UsageError

_KEY_CHARACTERS = 40
_SECRET_BYTES = 16
_ID_BYTES = 4
ID_CHARACTERS = 2 * _ID_BYTES


def make_secret() -> str:
    """A new secret part of a token (hex)."""
    return secrets.token_bytes(_SECRET_BYTES).hex()


def make_id() -> str:
    """A new id of a token (hex)."""
    return secrets.token_bytes(_ID_BYTES).hex()


def make_token(public_key: str, secret: str) -> str:
    """The token of a coordinator with that public key (Z85 text) and secret (hex, with the id where it has one)."""
    return base64.urlsafe_b64encode(public_key.encode() + bytes.fromhex(secret)).decode().rstrip("=")


def read_token(token: str, *, may_lack_secret: bool = False) -> tuple[str, str]:
    """The public key and the secret (hex, with the id where it has one) of a token.

    may_lack_secret: a worker that was let in once comes with the key alone; its secret is empty.

    Raises:
        UsageError: it is none.
    """
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        key, secret = raw[:_KEY_CHARACTERS].decode("ascii"), raw[_KEY_CHARACTERS:]
    except (binascii.Error, ValueError):
        key, secret = "", b""
    lengths = (_SECRET_BYTES, _ID_BYTES + _SECRET_BYTES, *((0,) if may_lack_secret else ()))
    if len(key) != _KEY_CHARACTERS or len(secret) not in lengths:
        raise UsageError("the token is not one that a coordinator printed; copy it whole")
    return key, secret.hex()
