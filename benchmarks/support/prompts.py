"""Prompts of random words: of an exact number of tokens where the tokenizer is at hand, and no two with a common beginning."""

import random
from pathlib import Path

from tokenizers import Tokenizer

_WORDS = ("time", "river", "stone", "green", "paper", "quiet", "seven", "north", "light", "wheel", "salt", "harbour")
_MAX_TRIES = 50


class PromptMaker:
    """Makes prompts from a seed. tokenizer: a directory with tokenizer.json; without one a length counts words."""

    def __init__(self, seed: int, tokenizer: Path | None = None):
        self._random = random.Random(seed)
        self._tokenizer = Tokenizer.from_file(str(tokenizer / "tokenizer.json")) if tokenizer else None
        self._words = self._single_token_words() if self._tokenizer else [f" {word}" for word in _WORDS]

    def make(self, num_tokens: int) -> str:
        """A text of `num_tokens` tokens, special ones that the tokenizer adds by itself included.

        Raises ValueError when the tokenizer does not allow that length.
        """
        if self._tokenizer is None:
            number = self._random.randrange(10**6)  # a beginning of its own, so that no prefix cache helps
            return f"{number}" + "".join(self._random.choices(self._words, k=max(num_tokens - 1, 0)))
        for _ in range(_MAX_TRIES):
            text = "".join(self._random.choices(self._words, k=num_tokens))
            extra = self._length(text) - num_tokens
            if extra > 0:
                text = "".join(self._random.choices(self._words, k=num_tokens - extra)) if num_tokens > extra else ""
            if text and self._length(text) == num_tokens:
                return text
        raise ValueError(f"no random prompt has exactly {num_tokens} tokens with this tokenizer")

    def _length(self, text: str) -> int:
        assert self._tokenizer is not None
        return len(self._tokenizer.encode(text).ids)

    def _single_token_words(self) -> list[str]:
        assert self._tokenizer is not None
        texts = [self._tokenizer.decode([number]) for number in self._tokenizer.get_vocab().values()]
        words = sorted({text for text in texts if text.startswith(" ") and text[1:].isalpha() and text.isascii()})
        return words or [f" {word}" for word in _WORDS]
