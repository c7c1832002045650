"""The text of one answer as its tokens come, with stop strings. Knows nothing of prompts or HTTP."""

from mlx_lm.tokenizer_utils import StreamingDetokenizer

from cluster.serving.held_answers import HeldParts
from cluster.serving.parts import Parts


class TextStream:
    """Turns the token ids of one answer into text as they come.

    The text never contains a stop string: what may be the beginning of one is held back until that is decided. How the
    ids are cut into pushes makes no difference to the text. num_tokens counts the ids used, up to and including the one
    that completed a stop string. parts: what the text is then taken apart by, None where it is not.
    """

    def __init__(
        self, detokenizer: StreamingDetokenizer, stop: tuple[str, ...] = (), parts: Parts | HeldParts | None = None
    ) -> None:
        self._detokenizer = detokenizer
        self._stop = stop
        self.parts = parts
        self._held = ""
        self.stopped = False
        self.num_tokens = 0

    def push(self, token_ids: tuple[int, ...]) -> tuple[str, bool]:
        """New text that `token_ids` settled, and whether a stop string ended the answer (further ids are ignored)."""
        if len(token_ids) == 1 and not self._stop:  # nearly every call
            self.num_tokens += 1
            self._add(token_ids[0])
            return self._detokenizer.last_segment, False
        texts = []
        for token in token_ids:
            if self.stopped:
                break
            self.num_tokens += 1
            self._add(token)
            texts.append(self._settle(self._detokenizer.last_segment))
        return "".join(texts), self.stopped

    def finish(self) -> str:
        """The rest of the text, once no more ids come. Empty after a stop string."""
        if self.stopped:
            return ""
        try:
            self._detokenizer.finalize()
        except KeyError:  # mlx-lm's byte-level detokenizer: a token outside its alphabet beside an unfinished character
            return self._held
        text = self._settle(self._detokenizer.last_segment)
        rest, self._held = self._held, ""
        return text + rest

    def _add(self, token: int) -> None:
        try:
            self._detokenizer.add_token(token)
        except (LookupError, TypeError):  # an id of the model's padded vocabulary that the tokenizer has no text for
            return

    def _settle(self, segment: str) -> str:
        """Take new text in; return what can be shown now."""
        if not self._stop:
            return segment
        text = self._held + segment
        ends = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if ends:
            # The one that is complete first, so that how the text was cut into segments makes no difference.
            self.stopped, self._held = True, ""
            return text[: min(ends)[1]]
        cut = len(text) - max(_overlap(text, stop) for stop in self._stop)
        self._held = text[cut:]
        return text[:cut]

    def __repr__(self) -> str:
        return f"<TextStream tokens={self.num_tokens} held={len(self._held)} stopped={self.stopped}>"


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` (and is shorter than it)."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return len(text) - at
        at = text.find(stop[0], at + 1)
    return 0
