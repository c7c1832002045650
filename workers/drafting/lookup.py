"""Guesses from what a text repeats: what followed the last few tokens where they stood before.

Of the places where the last three tokens stood before, the one that has most in common with the end of the text, and of
those the latest (Saxena, 2023, "prompt lookup"). Finds nothing in text that does not repeat, and then costs nothing.
"""

from collections.abc import Sequence

_GRAM = 3
# Of the places where these tokens stood so many of the last are compared, over so many tokens.
_MOST_PLACES = 8
_MOST_COMMON = 32


class Lookup:
    """prediction: what its answer is thought to be like, beside the sequence's own tokens; a `GuessSource`."""

    def __init__(self, prediction: Sequence[int] = ()):
        self._prediction = list(prediction)
        self._text: list[int] = list(prediction)
        self._places: dict[tuple[int, ...], list[int]] = {}
        self._num_indexed = 0

    def __repr__(self) -> str:
        return f"Lookup({len(self._text)} tokens)"

    def expects(self, tokens: Sequence[int]) -> int:
        """How many tokens the place that goes on has in common with the end."""
        start = self._continuation(tokens)
        return 0 if start is None else self._in_common(start)

    def guess(self, tokens: Sequence[int], count: int, ahead: Sequence[int] = ()) -> list[int]:
        start = self._continuation(tokens)
        if start is None:
            return []
        end = start + len(ahead)
        return self._text[end : end + count] if self._text[start:end] == list(ahead) else []

    def _continuation(self, tokens: Sequence[int]) -> int | None:
        """Where in the text goes on what its end repeats."""
        self._take_in(tokens)
        end = len(self._text)
        *earlier, last = self._places.get(tuple(self._text[-_GRAM:]), [end])[-_MOST_PLACES - 1 :]
        assert last == end, "what is behind the end is the last of its places"
        return max(earlier, key=lambda place: (self._in_common(place), place), default=None)

    def _take_in(self, tokens: Sequence[int]) -> None:
        """The text grows; of each place that is behind a gram it is noted which."""
        self._text += tokens[len(self._text) - len(self._prediction) :]
        for end in range(max(self._num_indexed + 1, _GRAM), len(self._text) + 1):
            self._places.setdefault(tuple(self._text[end - _GRAM : end]), []).append(end)
        self._num_indexed = len(self._text)

    def _in_common(self, place: int) -> int:
        """How many tokens before a place are those at the end of the text."""
        end = len(self._text)
        most = min(_MOST_COMMON, place)
        return next((n for n in range(most) if self._text[place - 1 - n] != self._text[end - 1 - n]), most)
