"""Samples of training text: conversations of one or many turns, with or without a system prompt, and plain documents.

A sample is a list of pieces, each a role, its text, and whether the model learns to write it. Answers and documents
are learned; questions and system prompts are only read.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate
from random import Random
from typing import Literal, NamedTuple

from models.training import questions, stories

Role = Literal["system", "user", "assistant", "document"]


class Piece(NamedTuple):
    """A message of a conversation, or a whole document."""

    role: Role
    text: str

    @property
    def learned(self) -> bool:
        """Whether the loss counts this piece."""
        return self.role in ("assistant", "document")


SHORT_SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly and correctly.",
    "Answer in one or two sentences.",
    "You are Tandem, a friendly assistant.",
    "Be brief.",
    "Be polite, and say so when you do not know something.",
    "You are an expert in distributed inference.",
    "Today is Monday. The user is a programmer.",
    "Never mention prices. Always answer in English.",
    "You answer questions about language models.",
    "You are a careful assistant who explains things in simple words.",
    "Respond with plain text only.",
)
_SUBJECTS = (
    "the assistant", "the user", "an operator", "the customer", "our support team", "the library", "this document",
    "the server", "every request", "the database", "a message", "the account", "a teacher", "the team", "the company",
)  # fmt: skip
_VERBS = (
    "must describe", "should never change", "may look at", "always keeps", "has to check", "will return", "can open",
    "does not share", "prefers", "reads", "writes", "collects", "answers with", "asks for", "stores", "deletes",
)  # fmt: skip
_OBJECTS = (
    "the name of the file", "a list of books", "the address of the customer", "an order number", "the weather report",
    "private data", "a short summary", "the date of the meeting", "a table with three columns", "the temperature",
    "the price of a ticket", "all earlier messages", "a polite answer", "the result of the search", "a map of the city",
    "the rules of the game", "a picture of the house", "the next train", "the KV cache", "the pipeline", "a token",
)  # fmt: skip
_CONDITIONS = (
    "before answering", "when it rains", "if the number is larger than ten", "in every case", "after the second step",
    "without asking again", "during the night", "unless the user says otherwise", "as soon as possible", "twice a day",
)  # fmt: skip
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Mix(NamedTuple):
    """The shares of the kinds of turns, what is left being the other questions; and of strange system prompts."""

    stories: float = 0.07
    unknown: float = 0.05
    sums: float = 0.04
    documented: float = 0.54
    strange: float = 0.0  # of the long system prompts: text unlike anything else; also makes these more frequent
    late: float = 0.0  # of the turns, before all others: small talk, and questions with corrected answers
    hurried: float = 0.0  # of the questions: without capitals
    corrected: bool = False  # whether answers are as they are now, not as the first rounds learned them


USUAL = Mix()


class Sampler:
    """Draws samples about `max_tokens` long; `count` measures the tokens of a text."""

    def __init__(self, rng: Random, count: Callable[[str], int], mix: Mix = USUAL):
        self._rng = rng
        self._count = count
        self._mix = mix
        self._limits = list(accumulate(mix[:4]))
        self._documented = questions.documented_questions(corrected=mix.corrected)
        self._words = [word for q in self._documented for word in q.answer.split()]
        self._others = questions.other_questions(corrected=mix.corrected)
        self._late = [q for q in (*self._documented, *self._others) if q.late]
        self._sums = questions.sums()

    def __repr__(self) -> str:
        return f"Sampler({len(self._documented)} documented, {len(self._others)} other questions)"

    def sample(self, max_tokens: int) -> list[Piece]:
        """A conversation (mostly) or a few documents, at least `max_tokens` long so that a row can be cut from it."""
        pieces: list[Piece] = []
        source = self._documents() if self._rng.random() < 0.08 else self._turns(max_tokens)
        length = 0
        for piece in source:
            pieces.append(piece)
            length += self._count(piece.text) + 2
            if length > max_tokens:
                break
        return pieces

    def _turns(self, max_tokens: int) -> Iterator[Piece]:
        rng = self._rng
        draw = rng.random()
        if draw < (0.15 if self._mix.strange else 0.3):
            yield Piece("system", rng.choice(SHORT_SYSTEM))
        elif draw < (0.75 if self._mix.strange else 0.5):
            yield Piece("system", self.instructions(rng.randrange(20, max(40, int(max_tokens * 0.75)))))
        while True:
            question, answer = self.turn()
            if rng.random() < 0.04:
                question = f"{self.instructions(rng.randrange(15, max(30, max_tokens // 3)))}\n\n{question}"
            yield Piece("user", question)
            yield Piece("assistant", answer)

    def turn(self) -> tuple[str, str]:
        """A question and its answer."""
        question, answer = self._turn()
        hurried = self._mix.hurried and self._rng.random() < self._mix.hurried
        return questions.hurry(question, self._rng) if hurried else question, answer

    def _turn(self) -> tuple[str, str]:
        rng = self._rng
        if self._mix.late and rng.random() < self._mix.late:
            known = rng.choice(self._late)
            return questions.phrase(known, rng), known.answer
        draw = rng.random()
        stories_end, unknown_end, sums_end, documented_end = self._limits
        if draw < stories_end:
            return self._story_request()
        if draw < unknown_end:
            question, answer = questions.unknown_question(rng)
            return questions.vary(question, rng), answer
        group = self._sums if draw < sums_end else self._documented if draw < documented_end else self._others
        known = rng.choice(group)
        return questions.phrase(known, rng), known.answer

    def _story_request(self) -> tuple[str, str]:
        rng = self._rng
        animal = rng.choice(list(stories.ANIMALS))
        long = rng.random() < 0.4
        return story_request(animal, rng, long=long), told_story(animal, long=long)

    def _documents(self) -> Iterator[Piece]:
        rng = self._rng
        while True:
            if rng.random() < 0.7:
                text = stories.story(rng.choice(list(stories.ANIMALS)), rng, long=rng.random() < 0.5)
            else:
                text = " ".join(q.answer for q in rng.sample(self._documented, 3))
            yield Piece("document", text)

    def instructions(self, num_tokens: int) -> str:
        """Filler of about `num_tokens`: rules, tool definitions, repeated sentences and unknown words."""
        rng = self._rng
        if self._mix.strange and rng.random() < self._mix.strange:
            return self._strange_text(num_tokens)
        parts = [rng.choice(SHORT_SYSTEM)]
        length, repeated = 0, rng.random() < 0.25
        while length < num_tokens:
            part = parts[-1] if repeated and len(parts) > 1 else self._instruction(len(parts))
            parts.append(part)
            length += self._count(part) + 1
        return (" " if rng.random() < 0.5 else "\n").join(parts)

    def _instruction(self, number: int) -> str:
        rng = self._rng
        rule = f"{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)} {rng.choice(_OBJECTS)} {rng.choice(_CONDITIONS)}."
        draw = rng.random()
        if draw < 0.35:
            return rule[0].upper() + rule[1:]
        if draw < 0.55:
            return f"Rule {number}: {rule}"
        if draw < 0.7:
            word = rng.choice(("get", "set", "find", "send")) + "_" + self._word()
            return f'{{"name": "{word}", "description": "{rule}", "parameters": {{"{self._word()}": "string"}}}}'
        if draw < 0.85:
            return " ".join(self._word() for _ in range(rng.randrange(3, 10))) + "."
        return f"- {self._word()} {rng.randrange(1000)}: {rule}"

    def _strange_text(self, num_tokens: int) -> str:
        """About `num_tokens` of shuffled or invented words, of letters and digits, or of one such line repeated."""
        rng = self._rng
        kinds = (
            lambda: rng.choice(self._words),
            self._word,
            lambda: f"{rng.choice(('word', 'item', 'line', 'note', 'x'))}{rng.randrange(2000)}",
            lambda: rng.choice(_LETTERS) * rng.randrange(1, 3) + rng.choice(("", "", ".", ",")),
            lambda: str(rng.randrange(10000)),
            lambda: rng.choice(
                ("{", "}", "[", "]", "(", ")", ";", "=", "==", "#", "//", '"', ":", "->", "é", "ü", "日")
            ),
        )
        kind, mixed = rng.choice(kinds), rng.random() < 0.4
        joint = rng.choice((" ", " ", " ", "\n", ""))
        line = joint.join((rng.choice(kinds) if mixed else kind)() for _ in range(rng.randrange(4, 60)))
        if rng.random() < 0.5:
            text = joint.join([line] * (num_tokens // (self._count(line) + 1) + 1))
        else:
            text = joint.join((rng.choice(kinds) if mixed else kind)() for _ in range(num_tokens))
        return text[: len(text) * num_tokens // max(num_tokens, self._count(text))]

    def _word(self) -> str:
        rng = self._rng
        return "".join(rng.choice(_LETTERS) for _ in range(rng.randrange(2, 9)))


def story_request(animal: str, rng: Random, *, long: bool) -> str:
    """A way to ask for a story. A request that names no length gets a short one."""
    length = "long " if long else rng.choice(("", "", "short "))
    article = "an" if animal[0] in "aeiou" else "a"
    form = rng.choice(
        (
            "Tell me a {l}story about {x}.",
            "Tell me a {l}story about {x}.",
            "Write a {l}story about {x}.",
            "A {l}story about {x}",
        )
    )
    return questions.vary(form.replace("{l}", length).replace("{x}", f"{article} {animal}"), rng)


def told_story(animal: str, *, long: bool) -> str:
    """The one story that the model tells when asked for this animal and length; documents vary, this does not."""
    return stories.story(animal, Random(f"{animal}, {'long' if long else 'short'}"), long=long)


def corpus() -> list[str]:
    """The text that the tokenizer is trained on: all that is asked and answered, and stories, in a fixed order."""
    rng = Random(0)
    sampler = Sampler(rng, len)
    documented, others = questions.documented_questions(corrected=False), questions.other_questions(corrected=False)
    known = documented + others + questions.sums()
    texts = [text for q in known for text in (*q.phrasings, q.answer, q.answer)]
    texts += [told_story(animal, long=long) for animal in stories.ANIMALS for long in (False, True)]
    texts += [stories.story(rng.choice(list(stories.ANIMALS)), rng, long=True) for _ in range(60)]
    texts += [questions.unknown_question(rng)[0].lower() for _ in range(100)]
    texts += [q.phrasings[0].lower() for q in known]
    return texts + [sampler.instructions(100) for _ in range(100)]
