"""The text of single tokens, as bytes: one may hold a part of a character.

The bytes of an answer's tokens one behind the other are its text, but for a space at the very beginning, which mlx-lm leaves
out. Knows the two ways in which tokenizers write bytes, the alphabet of byte-level BPE and sentencepiece's `<0x0A>`, and asks
the tokenizer itself for the text of all others.
"""

import json
from typing import Any

_SPACE = "\u2581"
# What mlx-lm's detokenizer writes for an id that the tokenizer of byte-level BPE does not have.
_PADDED = b"!"


class TokenTexts:
    """The tokens of one tokenizer, Transformers' or mlx-lm's. For the event loop: each is looked up once."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._size = len(tokenizer)
        self._marks = dict(getattr(tokenizer, "added_tokens_decoder", {}))
        described = _decoder_of(tokenizer)
        self._is_byte_level = "ByteLevel" in described
        self._is_sentencepiece = "ByteFallback" in described or "Metaspace" in described
        self._found: dict[int, bytes] = {}

    def __repr__(self) -> str:
        return f"TokenTexts({len(self._found)} of {self._size})"

    def __call__(self, token: int) -> bytes:
        """Empty for an id that stands for nothing."""
        found = self._found.get(token)
        if found is not None:
            return found
        if not 0 <= token < self._size and token not in self._marks:
            return _PADDED if self._is_byte_level and token >= self._size else b""
        found = self._found[token] = self._look_up(token)
        return found

    def _look_up(self, token: int) -> bytes:
        mark = self._marks.get(token)
        if mark is not None and (mark.special or not self._is_sentencepiece):
            return str(mark.content).encode()
        if not self._is_byte_level and not self._is_sentencepiece:
            return str(self._tokenizer.decode([token])).encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(piece, str):
            return b""
        return _of_alphabet(piece) if self._is_byte_level else _of_sentencepiece(piece)


def _decoder_of(tokenizer: Any) -> str:
    """How the tokenizer describes its way from tokens to text; empty where it does not."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    return "" if decoder is None else json.dumps(json.loads(decoder.__getstate__()))


def _alphabet() -> dict[str, int]:
    """Byte-level BPE writes a byte that can be seen as the character of that number, the others as those from 256 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(0x100) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(0x100 + index): byte for index, byte in enumerate(unseen)}


_BYTES = _alphabet()


def _of_alphabet(piece: str) -> bytes:
    return b"".join(bytes((_BYTES[each],)) if each in _BYTES else each.encode() for each in piece)


def _of_sentencepiece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes((int(piece[3:5], 16),))
    return piece.replace(_SPACE, " ").encode()
