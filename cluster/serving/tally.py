"""What one HTTP request takes and how it goes, told by whoever serves it: for the log, and for what a key may take.

It may be of several answers. Nothing is counted here for each token: what an answer has so far is looked up when somebody asks.
"""

from typing import TYPE_CHECKING

from protocol.errors import ApiError

if TYPE_CHECKING:  # which knows the requests that hold a tally
    from cluster.serving.answer import Answer
    from cluster.serving.pooled_answer import PooledAnswer


class Tally:
    """error: what the request failed with, or was refused for; strategy: of its first answer."""

    def __init__(self) -> None:
        self.error: ApiError | None = None
        self.strategy: str | None = None
        self._answers: list[Answer | PooledAnswer] = []

    def __repr__(self) -> str:
        return f"Tally({self.prompt_tokens}+{self.completion_tokens} tokens, {self.strategy})"

    def began(self, answer: "Answer | PooledAnswer", strategy: str) -> None:
        """An answer is worked on from now on."""
        self.strategy = self.strategy or strategy
        self._answers.append(answer)

    @property
    def is_finished(self) -> bool:
        """Whether there are answers, and all of them are complete."""
        return bool(self._answers) and all(answer.is_finished for answer in self._answers)

    @property
    def prompt_tokens(self) -> int:
        return sum(answer.prompt_tokens for answer in self._answers)

    @property
    def completion_tokens(self) -> int:
        return sum(answer.num_generated for answer in self._answers)

    @property
    def ttft_s(self) -> float | None:
        """Of the answer that began first."""
        return min((answer.ttft_s for answer in self._answers if answer.ttft_s is not None), default=None)

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Of all answers together; None where no answer has two tokens yet."""
        rates = [answer.decode_tokens_per_s for answer in self._answers]
        return sum(rate for rate in rates if rate is not None) or None
