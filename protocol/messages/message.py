"""What every message is."""

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every message."""
