"""What keeps long prompts cheap: how many tokens a text has at least."""

import json
from functools import lru_cache
from typing import Any

# A character of the text may be this many fewer in what is looked up: letters with their marks become one.
_COMPOSED = 3


@lru_cache(maxsize=1)
def longest_token(tokenizer: Any) -> int | None:
    """How many characters of a text one token stands for at most; None where that has no limit that could be known.

    Only of tokenizers that lose nothing: byte-level BPE, or BPE that falls back to bytes. Others drop spaces, or make one
    token of any number of unknown characters.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    described = json.loads(backend.to_str())
    if not _loses_nothing(described):
        return None
    longest = max(map(len, described["model"]["vocab"]))
    return _COMPOSED * max([longest, *(len(added["content"]) for added in described.get("added_tokens", ()))])


def _loses_nothing(described: dict[str, Any]) -> bool:
    model = described["model"]
    is_byte_level = "ByteLevel" in json.dumps(described.get("pre_tokenizer"))
    takes_spaces = any(added.get("lstrip") or added.get("rstrip") for added in described.get("added_tokens", ()))
    is_bpe = model["type"] == "BPE" and (is_byte_level or bool(model.get("byte_fallback")))
    return is_bpe and not takes_spaces and _keeps_text(described.get("normalizer"))


def _keeps_text(normalizer: dict[str, Any] | None) -> bool:
    match normalizer:
        case None | {"type": "NFC" | "NFD" | "NFKC" | "Prepend"}:
            return True
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
            return len(content) >= len(pattern)
        case {"type": "Sequence", "normalizers": parts}:
            return all(map(_keeps_text, parts))
        case _:
            return False
