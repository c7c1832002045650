"""Which tokens an answer may go on with: those of its grammar, and end tokens only where it may end.

Owns what is compiled of grammars for one model, on a thread of its own, since a large one takes a while; and where each
sequence is in its grammar. Knows nothing of MLX. llguidance is read when the first grammar comes.
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from protocol.errors import in_one_line
from protocol.messages import OpenSequence
from protocol.values import Sampling

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Compiled ones that are kept for who asks by the same.
_MOST_KEPT = 32
# By then a grammar that the coordinator has compiled before is compiled here, too.
_COMPILED_WITHIN_S = 20.0
# llguidance goes down into rules that name each other, and a thread's stack is small on some systems; it is only reserved.
_STACK_BYTES = 256 << 20
_TAIL_TOKENS = 32
# Characters of what llguidance says.
_MOST_SAID = 200


class GrammarFailed(Exception):
    """A grammar cannot be followed; it says why, as a clause."""


class Grammars:
    """What is compiled for one model. tokenizer: its tokenizer.json; vocabulary_size: known once it is loaded."""

    def __init__(self, tokenizer: Path, vocabulary_size: Callable[[], int]):
        self._path = tokenizer
        self._vocabulary_size = vocabulary_size
        self._tokenizers: dict[tuple[int, ...], LLTokenizer] = {}
        self._compiled: OrderedDict[tuple[str, tuple[int, ...]], LLMatcher] = OrderedDict()
        self._thread: ThreadPoolExecutor | None = None

    def __repr__(self) -> str:
        return f"Grammars({len(self._compiled)} compiled)"

    def constraint(self, message: OpenSequence) -> "Constraint | None":
        """Of a sequence; None where its tokens may be any."""
        sampling, ends = message.sampling, message.end_tokens
        if not sampling.looks_back:
            return None
        matcher = None if sampling.grammar is None else self._matcher(sampling.grammar.text, ends)
        return Constraint(sampling, self._vocabulary_size(), ends, message.answer, matcher)

    def _matcher(self, text: str, end_tokens: tuple[int, ...]) -> "Future[LLMatcher]":
        """One for a sequence, at the beginning of a grammar. Ends with GrammarFailed for what cannot be compiled."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammars")
            before = threading.stack_size(_STACK_BYTES)
            self._thread.submit(int).result()  # which starts it
            threading.stack_size(before)
        return self._thread.submit(self._made, text, end_tokens)

    def _made(self, text: str, end_tokens: tuple[int, ...]) -> "LLMatcher":
        key = (text, end_tokens)
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = self._compile(text, end_tokens)
            while len(self._compiled) > _MOST_KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return compiled.deep_copy()

    def _compile(self, text: str, end_tokens: tuple[int, ...]) -> "LLMatcher":
        from llguidance import LLMatcher, LLParserLimits

        matcher = LLMatcher(self._tokenizer(end_tokens), text, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if matcher.is_error():
            raise GrammarFailed(in_one_line(matcher.get_error(), _MOST_SAID))
        return matcher

    def _tokenizer(self, end_tokens: tuple[int, ...]) -> "LLTokenizer":
        if end_tokens not in self._tokenizers:
            self._tokenizers[end_tokens] = self._read(end_tokens)
        return self._tokenizers[end_tokens]

    def _read(self, end_tokens: tuple[int, ...]) -> "LLTokenizer":
        from llguidance import LLTokenizer

        path = str(self._path)
        try:
            known = LLTokenizer(path).vocab_size
            ends = [token for token in end_tokens if token < known] or None
            return LLTokenizer(path, n_vocab=max(self._vocabulary_size(), known), eos_token=ends)
        except ValueError as error:
            raise GrammarFailed(
                f"the model's tokenizer.json cannot be read: {in_one_line(str(error), _MOST_SAID)}"
            ) from error


class Constraint:
    """What one sequence's next token may be. failure: why the sequence cannot go on, as a clause; None while it can.

    end_tokens: what ends it; answer: ids that it already has; matcher: of its grammar, None where it has none.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocabulary_size: int,
        end_tokens: tuple[int, ...],
        answer: Sequence[int],
        matcher: "Future[LLMatcher] | None" = None,
    ):
        self._vocabulary_size = vocabulary_size
        self._ends = [token for token in end_tokens if token < vocabulary_size]
        self._min_tokens = sampling.min_tokens
        self._num_asked = len(answer)
        self._awaited = () if sampling.grammar is None else sampling.grammar.after
        self._compiling = matcher
        self._matcher: LLMatcher | None = None
        self._tail: list[int] = []  # of what is thought
        self._is_over = False
        self._behind = list(answer)  # taken once the grammar is compiled
        self.failure: str | None = None

    def __repr__(self) -> str:
        return f"Constraint({self._num_asked} tokens, {self.failure or self._matcher!r})"

    @property
    def needs_ids(self) -> bool:
        """Whether what is allowed next depends on the ids before."""
        return self._compiling is not None

    def allow(self, row: np.ndarray) -> None:
        """Say of each token whether it may come next: in a row of truth values, one for each of the vocabulary.

        To be asked once for each token, when all before are accepted.
        """
        self._num_asked += 1
        row[:] = True
        if self._is_over or self.failure is not None:
            return
        try:
            self._allow(row)
        except GrammarFailed as error:
            self.failure = f"the answer cannot be held to its grammar: {error}"
            row[:] = True

    def allow_behind(self, guesses: Sequence[int], rows: np.ndarray) -> None:
        """As `allow`, of the next token and of those behind each guess, a row for each: as far as the guesses may come themselves.
        How many of them were asked for is to be told then.
        """
        rows[:] = True
        try:
            ahead = self._ahead()
        except GrammarFailed as error:
            self.failure = f"the answer cannot be held to its grammar: {error}"
            return
        for place, row in enumerate(rows):
            ahead.allow(row)
            if place == 0:
                self.failure = ahead.failure
            if place == len(guesses) or ahead.failure is not None or not row[guesses[place]]:
                return
            ahead.accept(guesses[place])

    def told(self, num_asked: int) -> None:
        """So many of the tokens that `allow_behind` spoke of came."""
        self._num_asked += num_asked

    def _ahead(self) -> "Constraint":
        """Where this one is, to go on from there alone."""
        if self._compiling is not None and self.failure is None and not self._is_over:
            self._catch_up()
            self._ready()
        return copy.copy(self)

    def __copy__(self) -> "Constraint":
        """One that goes on alone."""
        made = object.__new__(type(self))
        matcher = None if self._matcher is None else self._matcher.deep_copy()
        vars(made).update(vars(self), _behind=list(self._behind), _matcher=matcher)
        return made

    def accept(self, token: int) -> None:
        """The token that came."""
        self._is_over = self._is_over or token in self._ends
        if self._compiling is not None and not self._is_over:
            self._behind.append(token)

    def _allow(self, row: np.ndarray) -> None:
        if self._compiling is not None:
            self._catch_up()
            if self._awaited:
                row[self._ends] = False  # what is thought is no answer
            else:
                self._in_grammar(row)
        if self._num_asked <= self._min_tokens:
            may_end = row[self._ends]
            row[self._ends] = False
            if not row.any():  # the grammar is complete
                row[self._ends] = may_end

    def _in_grammar(self, row: np.ndarray) -> None:
        matcher = self._ready()
        if matcher.is_stopped():
            self._require_no_error(matcher)
            row[:] = False
            row[self._ends] = True
        else:
            bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            self._require_no_error(matcher)
            row[:] = np.unpackbits(bits, count=self._vocabulary_size, bitorder="little")
        if not row.any():
            raise GrammarFailed("no token of this model goes on with it")

    def _catch_up(self) -> None:
        """Take what was accepted since."""
        tokens, self._behind = self._behind, []
        while tokens and self._awaited:
            self._tail = [*self._tail, tokens.pop(0)][-_TAIL_TOKENS:]
            if tuple(self._tail[-len(self._awaited) :]) == self._awaited:
                self._awaited = ()
        if tokens and self._ready().try_consume_tokens(tokens) < len(tokens):
            self._require_no_error(self._ready())
            raise GrammarFailed("what came is none of it")

    def _ready(self) -> "LLMatcher":
        if self._matcher is None:
            assert self._compiling is not None
            try:
                self._matcher = self._compiling.result(_COMPILED_WITHIN_S)
            except TimeoutError:
                raise GrammarFailed(f"it is not compiled after {_COMPILED_WITHIN_S:g} s") from None
        return self._matcher

    @staticmethod
    def _require_no_error(matcher: "LLMatcher") -> None:
        if matcher.is_error():
            raise GrammarFailed(in_one_line(matcher.get_error(), _MOST_SAID))


def allowed_tokens(constraints: Sequence[Constraint | None], vocabulary_size: int) -> np.ndarray:
    """Truth values (rows, V): what each row's next token may be; anything where it has no constraint."""
    rows = np.ones((len(constraints), vocabulary_size), bool)
    for row, constraint in zip(rows, constraints, strict=True):
        if constraint is not None:
            constraint.allow(row)
    return rows
