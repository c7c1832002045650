"""Rows of token ids from samples of text, and the examination of a model on known answers.

A greedy answer is right exactly when, with the right answer as input, the most likely token is right at each of its
positions. So one forward pass examines a whole conversation.
"""

from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.models.llama import Model
from tokenizers import Tokenizer

from models.training import conversations, questions, tools
from models.training.conversations import Piece, Sampler
from models.training.tokenizer import END, PAD, ROLE_MARKS, token_id


class Row(NamedTuple):
    """Token ids of one row, and for each whether the model learns to predict it."""

    tokens: list[int]
    learned: list[bool]


def encode(pieces: list[Piece], tokenizer: Tokenizer, length: int | None = None) -> Row:
    """The pieces as the chat template writes them; with `length`, cut or padded to `length` inputs and one more token."""
    tokens: list[int] = []
    learned: list[bool] = []
    for piece in pieces:
        if piece.role != "document":
            tokens.append(token_id(tokenizer, ROLE_MARKS[piece.role]))
            learned.append(False)
        ids = [*tokenizer.encode(piece.text).ids, token_id(tokenizer, END)]
        tokens += ids
        learned += [piece.learned] * len(ids)
    if length is None:
        return Row(tokens, learned)
    missing = max(0, length + 1 - len(tokens))
    pad = token_id(tokenizer, PAD)
    return Row((tokens + [pad] * missing)[: length + 1], (learned + [False] * missing)[: length + 1])


def arrays(batch: list[Row]) -> tuple[mx.array, mx.array, mx.array]:
    """Inputs (rows, length), the flat positions whose next token is learned (n,), and those tokens (n,)."""
    length = len(batch[0].tokens) - 1
    inputs = mx.array([row.tokens[:-1] for row in batch])
    picked = [
        (number * length + at, row.tokens[at + 1])
        for number, row in enumerate(batch)
        for at in range(length)
        if row.learned[at + 1]
    ]
    positions, targets = ([pair[index] for pair in picked] for index in (0, 1))
    return inputs, mx.array(positions, mx.int32), mx.array(targets, mx.int32)


def examinations(tokenizer: Tokenizer, *, thorough: bool) -> dict[str, list[Row]]:
    """The documented questions alone and rephrased and, when `thorough` (it takes a while), late in long conversations."""
    rng = Random("examination")
    known = questions.documented_questions()
    sampler = Sampler(rng, lambda text: len(tokenizer.encode(text).ids))

    def ask(question: str, answer: str) -> list[Piece]:
        return [Piece("user", question), Piece("assistant", answer)]

    long = []
    for _ in range(8 if thorough else 0):
        pieces = [Piece("system", sampler.instructions(1000))]
        for question in rng.sample([q for q in known if len(q.answer) < 300], 10):
            pieces += ask(question.phrasings[0], question.answer)
        long.append(encode(pieces, tokenizer))
    return {
        "documented": [encode(ask(q.phrasings[0], q.answer), tokenizer) for q in known],
        "rephrased": [encode(ask(questions.phrase(q, rng), q.answer), tokenizer) for q in known for _ in range(2)],
        "after 1,000 tokens and in ten turns": long,
        **_with_tools(tokenizer, rng),
    }


def _with_tools(tokenizer: Tokenizer, rng: Random) -> dict[str, list[Row]]:
    """Of a turn with a tool, both the call and the answer count."""
    sampler = tools.ToolSampler(rng, len, conversations.USUAL)

    def rows(turns: list[tools.ToolTurn]) -> list[Row]:
        return [encode([tools.offer([turn.tool]), *turn.pieces()], tokenizer) for turn in turns]

    asked = tools.documented_json() + [sampler.json_question() for _ in range(20)]
    return {
        "documented with tools": rows(tools.documented_turns()),
        "others with tools": rows([sampler.turn() for _ in range(60)]),
        "as JSON": [encode([Piece("user", ask), Piece("assistant", answer)], tokenizer) for ask, answer in asked],
    }


def count_right(model: Model, samples: list[Row]) -> tuple[int, int]:
    """How many answers of the samples the model would give token by token, and how many there are."""
    right = total = 0
    for row in samples:
        best: Any = mx.argmax(model(mx.array([row.tokens[:-1]])), axis=-1)[0].tolist()
        for start, end in _answers(row):
            total += 1
            right += best[start - 1 : end - 1] == row.tokens[start:end]
    return right, total


def _answers(row: Row) -> list[tuple[int, int]]:
    """The half-open ranges of learned tokens."""
    edges = [at for at, (a, b) in enumerate(pairwise([False, *row.learned, False])) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))
