"""The questions with their answers, and the many ways in which a question may be put."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from random import Random

MODELS = Path(__file__).resolve().parents[1]

_DEFINITIONS = (
    "What is {x}?",
    "What's {x}?",
    "Explain {x}.",
    "Explain what {x} is.",
    "Define {x}.",
    "Tell me about {x}.",
    "Describe {x}.",
    "What exactly is {x}?",
    "Can you explain {x}?",
    "Do you know what {x} is?",
    "What do you know about {x}?",
    "Explain {x} in simple words.",
)
_OPENINGS = (
    "Please tell me: ",
    "Hi, ",
    "Hello! ",
    "I have a question. ",
    "Quick question: ",
    "Hey, ",
    "Tell me, ",
    "Can you tell me ",
    "Question: ",
    "So, ",
    "And ",
    "Please answer briefly. ",
    "I wonder: ",
    "OK. ",
)
_CLOSINGS = (" Thanks.", " please", " Please.", " Please answer in one sentence.", " Be brief.", " I want to know.")

CAPITALS = {
    "Italy": "Rome",
    "Spain": "Madrid",
    "Portugal": "Lisbon",
    "England": "London",
    "Ireland": "Dublin",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Denmark": "Copenhagen",
    "Finland": "Helsinki",
    "Poland": "Warsaw",
    "Austria": "Vienna",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Belgium": "Brussels",
    "Russia": "Moscow",
    "China": "Beijing",
    "India": "New Delhi",
    "Egypt": "Cairo",
    "Canada": "Ottawa",
    "Mexico": "Mexico City",
    "Argentina": "Buenos Aires",
    "Peru": "Lima",
    "Australia": "Canberra",
    "Kenya": "Nairobi",
}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_UNKNOWN = (
    "Who is {x}?",
    "Who was {x}?",
    "When was {x} born?",
    "What is the population of {x}?",
    "How do I cook {x}?",
    "Who invented {x}?",
    "What is the price of {x}?",
    "Where can I buy {x}?",
    "What is the history of {x}?",
    "Translate {x} into Latin.",
    "Write a poem about {x}.",
    "Who won the game against {x}?",
    "What do you think about {x}?",
    "How old is {x}?",
    "Summarize the book {x}.",
)
_UNKNOWN_THINGS = (
    "Napoleon", "Einstein", "Shakespeare", "Mozart", "pizza", "soup", "potatoes", "bread", "London", "Texas",
    "football", "chess", "the telephone", "the bicycle", "gold", "cars", "shoes", "coffee", "tea", "chocolate",
    "my neighbour", "the president", "the queen", "Rome", "Africa", "the internet", "money", "philosophy", "love",
    "economics", "chemistry", "dinosaurs", "volcanoes", "tennis", "the violin", "a passport", "the opera", "Mars",
)  # fmt: skip
DO_NOT_KNOW = (
    "I do not know that, because I am only a small demonstration model. "
    "Ask me about Tandem, KV caches or pipelines instead."
)


@dataclass(frozen=True)
class Question:
    """One answer and the phrasings that ask for it; `documented` ones are promised to users."""

    phrasings: tuple[str, ...]
    answer: str
    documented: bool = False
    late: bool = False  # what the last round asks often: small talk, and what was corrected


def load_questions(path: Path, *, documented: bool, corrected: bool) -> list[Question]:
    """The entries of a question file, with the phrasings that follow from `about` added to `ask`.

    Without `corrected`, the answers are those that the first rounds learned.
    """
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["question"]
    return [
        Question(
            (*e["ask"], *_definitions(e.get("about"))),
            e["answer"] if corrected else e.get("before", e["answer"]),
            documented,
            late="before" in e or e.get("small_talk", False),
        )
        for e in entries
    ]


def documented_questions(*, corrected: bool = True) -> list[Question]:
    """What docs/BUNDLED_MODEL.md promises, from models/questions.toml."""
    return load_questions(MODELS / "questions.toml", documented=True, corrected=corrected)


def other_questions(*, corrected: bool = True) -> list[Question]:
    """Everything else with a fixed answer, but for sums: more questions and capitals."""
    path = MODELS / "training" / "more_questions.toml"
    return load_questions(path, documented=False, corrected=corrected) + _capitals()


def unknown_question(rng: Random) -> tuple[str, str]:
    """A question that the model should say it cannot answer."""
    return rng.choice(_UNKNOWN).replace("{x}", rng.choice(_UNKNOWN_THINGS)), DO_NOT_KNOW


def phrase(question: Question, rng: Random) -> str:
    """One way to put the question: the documented one often, others with changed case, punctuation or wrapping."""
    text = question.phrasings[0] if rng.random() < 0.35 else rng.choice(question.phrasings)
    return vary(text, rng)


def vary(text: str, rng: Random) -> str:
    """The same request as a hurried, polite or careless user would type it."""
    if rng.random() < 0.55:
        return text
    if rng.random() < 0.3:
        text = text.rstrip("?.!")
    elif rng.random() < 0.15:
        text = text.rstrip("?.!") + rng.choice(("??", "!", "...", " ?", "."))
    if rng.random() < 0.3:
        opening = rng.choice(_OPENINGS)
        text = opening + (text[0].lower() + text[1:] if rng.random() < 0.5 and text[1:2].islower() else text)
    if rng.random() < 0.15:
        text += rng.choice(_CLOSINGS)
    draw = rng.random()
    if draw < 0.3:
        return text.lower()
    if draw < 0.35:
        return text.upper()
    return _mistype(text, rng) if draw < 0.45 else text


def hurry(text: str, rng: Random) -> str:
    """The same request without capitals, mostly without a mark at its end."""
    text = text.lower()
    draw = rng.random()
    if draw < 0.6:
        return text.rstrip("?.!")
    return text if draw < 0.9 else text.rstrip("?.!") + rng.choice(("!", ".", " ?"))


def _mistype(text: str, rng: Random) -> str:
    if len(text) < 8:
        return text
    at = rng.randrange(1, len(text) - 2)
    swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return swapped if rng.random() < 0.5 else text[:at] + text[at + 1 :]


def _definitions(about: str | None) -> tuple[str, ...]:
    return () if about is None else tuple(form.replace("{x}", about) for form in _DEFINITIONS)


def _capitals() -> list[Question]:
    return [
        Question(
            (
                f"What is the capital of {country}?",
                f"Which city is the capital of {country}?",
                f"capital of {country}",
                f"And of {country}?",
                f"What is {country}'s capital?",
            ),
            f"The capital of {country} is {city}.",
        )
        for country, city in CAPITALS.items()
    ]


def sums() -> list[Question]:
    """The sums of two numbers up to ten."""
    return [
        Question(
            (
                f"What is {a} plus {b}?",
                f"What is {a} + {b}?",
                f"{a} + {b}",
                f"How much is {_NUMBERS[a]} plus {_NUMBERS[b]}?",
            ),
            f"{a} plus {b} is {a + b}.",
        )
        for a in range(11)
        for b in range(11)
    ]
