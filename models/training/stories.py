"""Short stories from a grammar: a character, a place, a problem, a helper and an ending that follows from them.

A story is a pure function of its arguments and of the random generator, so the training text is reproducible.
"""

from dataclasses import dataclass
from random import Random

ANIMALS: dict[str, tuple[str, ...]] = {
    # animal: what it is like
    "fox": ("clever", "red"),
    "cat": ("small", "grey"),
    "dog": ("faithful", "brown"),
    "owl": ("wise", "old"),
    "bear": ("strong", "sleepy"),
    "rabbit": ("quick", "shy"),
    "mouse": ("tiny", "brave"),
    "horse": ("fast", "white"),
    "bird": ("young", "blue"),
    "turtle": ("slow", "patient"),
    "frog": ("green", "cheerful"),
    "wolf": ("lonely", "grey"),
    "hedgehog": ("round", "careful"),
    "squirrel": ("busy", "red"),
    "duck": ("yellow", "curious"),
    "robot": ("little", "friendly"),
    "dragon": ("gentle", "green"),
    "whale": ("huge", "calm"),
    "penguin": ("funny", "young"),
    "elephant": ("kind", "big"),
}
NAMES = ("Mira", "Tom", "Lena", "Otto", "Nila", "Finn", "Ada", "Milo", "Rosa", "Emil")


@dataclass(frozen=True)
class Place:
    """Where a story happens, with a phrase for being there and one for a walk through it."""

    at: str
    walk: str


PLACES = (
    Place("in a forest near a small village", "between the tall trees"),
    Place("by a quiet river", "along the water"),
    Place("on a green hill", "through the high grass"),
    Place("in an old garden", "past the flowers"),
    Place("at the edge of the sea", "over the wet sand"),
    Place("in a valley between two mountains", "up the narrow path"),
)


@dataclass(frozen=True)
class Plot:
    """A problem with the sentences that lead through it. `{n}` is the hero's name, `{h}` the helper."""

    problem: str
    worry: str
    idea: str
    work: str
    solved: str
    lesson: str


PLOTS = (
    Plot(
        problem="One morning {n} could not find the way home, because thick fog lay over everything.",
        worry="{n} called out loudly, but only an echo came back.",
        idea='"Follow the sound of the bell," said {h}. "It rings in your village every hour."',
        work="So they waited, listened, and walked a little further each time the bell rang.",
        solved="At noon the fog was gone, and {n} stood in front of the right door.",
        lesson="From that day on {n} always listened before running.",
    ),
    Plot(
        problem="One evening a storm broke the only bridge, and nobody could cross any more.",
        worry="{n} looked at the broken planks and did not know what to do.",
        idea='"Alone we are too weak," said {h}. "But each of us can carry one piece of wood."',
        work="So they called all their neighbours, stood in a line, and passed the wood from one to the next.",
        solved="Before the moon was up, the bridge was whole again, and {n} was the first to cross it.",
        lesson="Since then everybody knows that many small steps make a long way short.",
    ),
    Plot(
        problem="In winter the food ran out, and the snow was deeper than ever.",
        worry="{n} searched under every tree and came back with empty hands.",
        idea='"I have nuts, but I have no fire," said {h}. "You have wood, but nothing to eat."',
        work="So they put everything together, made a warm fire, and shared each meal.",
        solved="When spring came, both were well, and {n} had become a better cook.",
        lesson="They still share their supper every winter.",
    ),
    Plot(
        problem="One day {n} lost a golden key that opened the door of the library.",
        worry="{n} looked in every pocket and under every stone.",
        idea='"Let us go back the way you came," said {h}. "Things wait where we leave them."',
        work="So they walked back slowly and looked at every leaf on the ground.",
        solved="Beside an old well something was shining, and it was the key.",
        lesson="That night {n} read stories to everyone until the candles went out.",
    ),
    Plot(
        problem="Every night a strange light moved over the fields, and everyone was afraid of it.",
        worry="{n} was afraid too, but wanted to know what it was.",
        idea='"Fear is small when two look at it," said {h}. "I will come with you."',
        work="So they went out together and followed the light without a sound.",
        solved="It was only a lost firefly with a very large lantern, and {n} showed it the way home.",
        lesson="After that nobody was afraid of the dark any more.",
    ),
)
HELPERS = ("an old owl", "a friendly badger", "a wise crow", "a small beetle", "a travelling goose")


def story(animal: str, rng: Random, *, long: bool) -> str:
    """One story about `animal` (a key of ANIMALS): about 75 words, or about 170 when `long`."""
    first, second = ANIMALS[animal]
    name, place, plot = rng.choice(NAMES), rng.choice(PLACES), rng.choice(PLOTS)
    helper = rng.choice(HELPERS)
    known = "the " + helper.split(" ", 1)[1]
    article = "an" if animal[0] in "aeiou" else "a"
    sentences = [f"Once upon a time there was {article} {animal} named {name}, who lived {place.at}."]
    if long:
        sentences += [
            f"{name} was {first} and {second}, and every day began with a walk {place.walk}.",
            f"In the evening {name} sat in front of the house and counted the stars.",
        ]
    sentences.append(plot.problem)
    sentences.append(plot.worry)
    if long:
        sentences += [
            f"The hours went by, and {name} became tired and sad.",
            "But giving up was no answer, so the search went on.",
        ]
    sentences.append(f"Then {helper} came by and asked what was wrong.")
    if long:
        sentences.append(f"{name} told the whole story, and {known} nodded and thought for a while.")
    sentences += [plot.idea.replace("{h}", known), plot.work]
    if long:
        sentences += [
            "It was hard, and more than once they wanted to stop.",
            "But together they went on, step by step.",
        ]
    sentences.append(plot.solved)
    if long:
        sentences += [
            f"{name} thanked {known} and wanted to give something in return.",
            f'"Be my friend," said {known}, "that is enough."',
        ]
    sentences.append(plot.lesson)
    return " ".join(sentences).replace("{n}", name)
