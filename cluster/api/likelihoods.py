"""Log probabilities in OpenAI's words: those of chats, and the older ones of completions."""

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from cluster.serving.requests import Delta, Likelihood, Scored


def chat_logprobs(scores: Sequence[Scored]) -> dict[str, Any]:
    """Of a piece of an answer, or of a whole one."""
    content = [_entry(score.chosen) | {"top_logprobs": list(map(_entry, score.top))} for score in scores]
    return {"content": content, "refusal": None}


def text_logprobs(scores: Sequence[Scored], offsets: Sequence[int]) -> dict[str, Any]:
    """Lists with an entry for each token; offsets: where in its choice's text each begins, in characters."""
    return {
        "tokens": [_shown(score.chosen.text, "bytes:") for score in scores],
        "token_logprobs": [score.chosen.logprob for score in scores],
        "top_logprobs": [_likeliest(score) for score in scores],
        "text_offset": list(offsets),
    }


class TextOffsets:
    """Where in one choice's text its tokens begin, in characters, as they come."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0

    def __repr__(self) -> str:
        return f"TextOffsets({self._at})"

    def of(self, scores: Iterable[Scored]) -> list[int]:
        """Of the next tokens."""
        offsets = []
        for score in scores:
            offsets.append(self._at)
            self._at += len(self._decoder.decode(score.chosen.text))
        return offsets

    def of_echo(self, echo: Delta) -> list[int]:
        """Of a prompt's tokens; what begins them and is no part of its text, as the mark of a beginning, is at 0."""
        offsets = self.of(echo.scores)
        too_far, self._at = self._at - len(echo.text), len(echo.text)
        self._decoder.reset()
        return [max(at - too_far, 0) for at in offsets]


def _entry(of: Likelihood) -> dict[str, Any]:
    return {"token": _shown(of.text), "logprob": of.logprob, "bytes": list(of.text)}


def _likeliest(score: Scored) -> dict[str, float | None] | None:
    """With the chosen one. Of several tokens with one text the likeliest counts; the first of a prompt has none."""
    if score.chosen.logprob is None:
        return None
    found: dict[str, float | None] = {}
    for of in (*score.top, score.chosen):
        found.setdefault(_shown(of.text, "bytes:"), of.logprob)
    return found


def _shown(token: bytes, before_bytes: str = "") -> str:
    """A token as text; one that is a part of a character by its bytes, as OpenAI writes them."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return before_bytes + "".join(f"\\x{byte:02x}" for byte in token)
