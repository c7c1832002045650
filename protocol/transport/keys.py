"""The CURVE keys of a process."""

import contextlib
from typing import Self

import msgspec
import zmq

from protocol.home import Home


class KeyPair(msgspec.Struct, frozen=True):
    """A CURVE key pair as Z85 text. Whoever keeps one across restarts stays known to those who were given its public key."""

    public: str
    secret: str

    @classmethod
    def generate(cls) -> Self:
        """A new pair."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The pair of `to_text`.

        Raises:
            ValueError: the text is none.
        """
        public, _, secret = text.strip().partition(" ")
        try:
            belong_together = zmq.curve_public(secret.encode()) == public.encode()
        except (ValueError, zmq.ZMQError):
            belong_together = False
        if not belong_together:
            raise ValueError("these are no CURVE keys: make new ones")
        return cls(public, secret)

    @classmethod
    def kept(cls, home: Home, name: str) -> Self:
        """The pair of the process of that name in a home; a new one the first time, and where the file is damaged.

        Raises:
            OSError: it cannot be kept.
        """
        file = home.keys / f"{name}.curve"
        with contextlib.suppress(OSError, ValueError):
            return cls.from_text(file.read_text("ascii"))
        keys = cls.generate()
        home.write_private(file, keys.to_text().encode())
        return keys

    def to_text(self) -> str:
        """Both keys in one line, for a file that only its owner reads."""
        return f"{self.public} {self.secret}"

    def __repr__(self) -> str:
        return f"KeyPair({self.public})"
