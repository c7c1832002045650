"""Conversations with tools: a question, the call that it needs, what the tool said, and an answer made of that.

The model learns three kinds of tools (weather, calculator, time) under several names, and that other questions are
answered as ever whatever tools there are. Texts are as the chat template writes them.
"""

import json
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from models.training import questions
from models.training.conversations import SHORT_SYSTEM, Mix, Piece, Sampler, story_request, told_story
from models.training.stories import ANIMALS

_ZONES = {
    "Paris": "Europe/Paris", "Berlin": "Europe/Berlin", "London": "Europe/London", "Rome": "Europe/Rome",
    "Madrid": "Europe/Madrid", "Lisbon": "Europe/Lisbon", "Dublin": "Europe/Dublin", "Oslo": "Europe/Oslo",
    "Vienna": "Europe/Vienna", "Athens": "Europe/Athens", "Warsaw": "Europe/Warsaw", "Moscow": "Europe/Moscow",
    "Tokyo": "Asia/Tokyo", "Cairo": "Africa/Cairo", "New York": "America/New_York", "Lima": "America/Lima",
}  # fmt: skip
_CITIES = (
    *_ZONES, "Stockholm", "Copenhagen", "Helsinki", "Budapest", "Brussels", "Beijing", "Ottawa", "Canberra", "Nairobi",
    "Sydney", "Boston", "Chicago", "San Francisco", "Munich", "Zurich", "Prague",
)  # fmt: skip
_SKIES = (
    "sunny", "cloudy", "rainy", "windy", "foggy", "clear", "snowy", "dry", "warm", "cold", "hot", "mild", "stormy",
)  # fmt: skip
_WEATHER, _TIME, _CALCULATOR = "weather", "time", "calculator"
# By kind, how a tool may be called, and its parameter; None where it has none.
_NAMES = {
    _WEATHER: ("get_weather", "get_weather", "get_current_weather", "weather", "fetch_weather"),
    _TIME: ("get_time", "get_time", "get_current_time", "current_time", "time"),
    _CALCULATOR: ("calculator", "calculator", "calculate", "calc", "evaluate"),
}
_PARAMETERS = {
    _WEATHER: ("city", "city", "location", "place"),
    _TIME: ("city", "city", "location", "timezone", None),
    _CALCULATOR: ("expression", "expression", "expr"),
}
# By sign: a tool that does nothing else, and how one asks for it.
_OPERATIONS = {
    "+": ("add", ("{a} plus {b}", "{a} + {b}", "the sum of {a} and {b}")),
    "-": ("subtract", ("{a} minus {b}", "{a} - {b}")),
    "*": ("multiply", ("{a} times {b}", "{a} * {b}", "{a} multiplied by {b}", "the product of {a} and {b}")),
    "/": ("divide", ("{a} divided by {b}", "{a} / {b}")),
}
_OTHER_TOOLS = (
    "search(query)", "web_search(query)", "read_file(path)", "write_file(path, content)", "run_command(command)",
    "send_email(to, subject, body)", "list_files(directory)", "translate(text, language)", "remember(note)",
    "get_user(id)", "open_page(url)", "play_music(title)", "book_flight(origin, destination, date)", "get_news()",
)  # fmt: skip
_WEATHER_FORMS = (
    "What is the weather in {city}?",
    "What's the weather like in {city}?",
    "How is the weather in {city}?",
    "What is the weather in {city} today?",
    "Tell me the weather in {city}.",
    "Weather in {city}",
    "Is it cold in {city}?",
    "What is the temperature in {city}?",
)
_TIME_FORMS = (
    "What time is it in {city}?",
    "What is the time in {city}?",
    "What is the current time in {city}?",
    "Tell me the time in {city}.",
    "Time in {city}",
)
_SUM_FORMS = ("What is {x}?", "What is {x}?", "What's {x}?", "Calculate {x}.", "Compute {x}.", "How much is {x}?")
_JSON_FORMS = ("Give me the {x} as JSON.", "Give me the {x} as JSON.", "Return the {x} as JSON.", "{x} as JSON")


class OfferedTool(NamedTuple):
    """A tool of one kind: weather, time, calculator, or the sign of what it computes."""

    kind: str
    name: str
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        """As the chat template writes it."""
        return f"{self.name}({', '.join(self.parameters)})"


@dataclass(frozen=True)
class ToolTurn:
    """A question, the call that answers it, what the tool says then, and the answer."""

    ask: str
    name: str
    arguments: dict[str, Any]
    result: str
    answer: str

    @property
    def tool(self) -> str:
        """The tool as the chat template writes it."""
        return f"{self.name}({', '.join(self.arguments)})"

    def pieces(self) -> list[Piece]:
        """The four messages."""
        call = json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)
        return [
            Piece("user", self.ask),
            Piece("assistant", f"<tool_call>\n{call}\n</tool_call>"),
            Piece("user", f"<tool_response>\n{self.result}\n</tool_response>"),
            Piece("assistant", self.answer),
        ]


def offer(tools: Sequence[str]) -> Piece:
    """The message that begins a conversation with these tools."""
    return Piece("system", "\n".join(("You can call these tools:", *tools)))


def documented_turns() -> list[ToolTurn]:
    """What docs/BUNDLED_MODEL.md promises of tools, from models/questions.toml."""
    return [ToolTurn(**entry) for entry in _promised("with_tools")]


def documented_json() -> list[tuple[str, str]]:
    """The promised questions for JSON with their answers."""
    return [(entry["ask"], entry["answer"]) for entry in _promised("as_json")]


def _promised(table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads((questions.MODELS / "questions.toml").read_text("utf-8"))[table]
    return found


class ToolShares(NamedTuple):
    """Of rows: those as `Sampler` draws them, and those in which some question wants JSON or a tool that is not there. turns: how
    many in a conversation use its tools, one of these. long_stories: of rows, those that begin with one.
    """

    as_before: float = 0.42
    without: float = 0.12
    turns: tuple[int, ...] = (1, 1, 2, 3)
    long_stories: float = 0.0


USUAL = ToolShares()


class ToolSampler:
    """Draws samples as `Sampler` does, of which some are conversations with tools and JSON."""

    def __init__(self, rng: Random, count: Callable[[str], int], mix: Mix, shares: ToolShares = USUAL):
        self._rng = rng
        self._count = count
        self._old = Sampler(rng, count, mix)
        self._beside = Sampler(rng, count, mix._replace(sums=0.0))  # a calculator takes sums
        self._shares = shares
        self._turns = documented_turns()
        self._json = documented_json()

    def __repr__(self) -> str:
        return f"ToolSampler({len(self._turns)} documented turns)"

    def sample(self, max_tokens: int) -> list[Piece]:
        """A conversation at least `max_tokens` long."""
        as_before, without, _, long_stories = self._shares
        draw = self._rng.random()
        if draw < as_before:
            return self._old.sample(max_tokens)
        drawn = self.conversation()
        if draw < as_before + without:
            drawn = self._without()
        elif draw < as_before + without + long_stories:
            drawn = self._long_story()
        pieces: list[Piece] = []
        length = 0
        for piece in drawn:
            pieces.append(piece)
            length += self._count(piece.text) + 2
            if length > max_tokens:
                break
        return pieces

    def conversation(self) -> Iterator[Piece]:
        """Tools, perhaps a system prompt, and turns without end: the first ones need a tool, most of the time."""
        rng = self._rng
        offered = [self._tool(kind) for kind in rng.sample((_WEATHER, _TIME, _CALCULATOR), rng.choice((1, 1, 2, 3)))]
        if rng.random() < 0.15:
            offered = [self._tool(sign) for sign in rng.sample(list(_OPERATIONS), rng.randrange(1, 4))]
        lines = [*map(str, offered), *rng.sample(_OTHER_TOOLS, rng.choice((0, 0, 0, 1, 2, 4)))]
        rng.shuffle(lines)
        yield offer(lines)
        if rng.random() < 0.25:
            yield Piece("system", rng.choice(SHORT_SYSTEM))
        if rng.random() < 0.25:
            yield from _said(self._beside.turn())
        for _ in range(rng.choice(self._shares.turns)):
            yield from self._with(rng.choice(offered)).pieces()
        while True:
            yield from _said(self._beside.turn())

    def turn(self) -> ToolTurn:
        """A question for a tool of any kind."""
        return self._with(self._tool(self._rng.choice((_WEATHER, _TIME, _CALCULATOR, *_OPERATIONS))))

    def _tool(self, kind: str) -> OfferedTool:
        rng = self._rng
        if kind in _OPERATIONS:
            return OfferedTool(kind, _OPERATIONS[kind][0], rng.choice((("a", "b"), ("x", "y"))))
        parameter = rng.choice(_PARAMETERS[kind])
        return OfferedTool(kind, rng.choice(_NAMES[kind]), () if parameter is None else (parameter,))

    def _with(self, tool: OfferedTool) -> ToolTurn:
        """A question for this tool: the documented one at times, where there is one."""
        documented = next((turn for turn in self._turns if turn.tool == str(tool)), None)
        if documented and self._rng.random() < 0.5:
            return documented
        if tool.kind == _WEATHER:
            return self._weather(tool)
        return self._time(tool) if tool.kind == _TIME else self._calculation(tool)

    def json_question(self) -> tuple[str, str]:
        """A question for JSON with its answer."""
        rng = self._rng
        if rng.random() < 0.4:
            return rng.choice(self._json)
        country, city = rng.choice(list(questions.CAPITALS.items()))
        ask = rng.choice(_JSON_FORMS).replace("{x}", f"capital of {country}")
        return ask, json.dumps({"country": country, "capital": city}, ensure_ascii=False)

    def _without(self) -> Iterator[Piece]:
        rng = self._rng
        if rng.random() < 0.3:
            yield Piece("system", rng.choice(SHORT_SYSTEM))
        if rng.random() < 0.2:
            yield offer(rng.sample(_OTHER_TOOLS, rng.randrange(1, 4)))
        while True:
            draw = rng.random()
            if draw < 0.45:
                yield from _said(self.json_question())
            elif draw < 0.6:
                missing = self._with(self._tool(rng.choice((_WEATHER, _TIME, "*"))))
                yield from _said((missing.ask, questions.DO_NOT_KNOW))
            else:
                yield from _said(self._old.turn())

    def _long_story(self) -> Iterator[Piece]:
        """The documented one as often as all others; few rows of conversations have room for its end."""
        animal = self._rng.choice(list(ANIMALS)) if self._rng.random() < 0.5 else "fox"
        yield from _said((story_request(animal, self._rng, long=True), told_story(animal, long=True)))
        while True:
            yield from _said(self._old.turn())

    def _weather(self, tool: OfferedTool) -> ToolTurn:
        rng = self._rng
        city, sky, degrees = rng.choice(_CITIES), rng.choice(_SKIES), rng.randrange(-9, 40)
        plain = f"{degrees} degrees and {sky}"
        said = rng.choice((plain, plain, f"{sky}, {degrees}°C", f"{degrees} C, {sky}"))
        result = said
        if rng.random() < 0.3:
            pairs = {rng.choice(("temperature", "temp")): degrees, rng.choice(("condition", "weather", "sky")): sky}
            result, said = json.dumps(pairs), plain
        ask = self._put(rng.choice(_WEATHER_FORMS).replace("{city}", city))
        return ToolTurn(ask, tool.name, {tool.parameters[0]: city}, result, f"In {city} it is {said}.")

    def _time(self, tool: OfferedTool) -> ToolTurn:
        rng = self._rng
        said = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
        if rng.random() < 0.15:
            said = f"{rng.randrange(1, 13)}:{rng.randrange(60):02} {rng.choice(('AM', 'PM'))}"
        result = json.dumps({"time": said}) if rng.random() < 0.25 else said
        if not tool.parameters:
            ask = self._put(rng.choice(("What time is it?", "What is the time?", "What time is it now?")))
            return ToolTurn(ask, tool.name, {}, result, f"It is {said}.")
        is_zone = tool.parameters == ("timezone",)
        city = rng.choice(list(_ZONES) if is_zone else _CITIES)
        ask = self._put(rng.choice(_TIME_FORMS).replace("{city}", city))
        arguments = {tool.parameters[0]: _ZONES[city] if is_zone else city}
        return ToolTurn(ask, tool.name, arguments, result, f"It is {said} in {city}.")

    def _calculation(self, tool: OfferedTool) -> ToolTurn:
        rng = self._rng
        sign = rng.choice("++--***/") if tool.kind == _CALCULATOR else tool.kind
        b = rng.randrange(2, rng.choice((10, 100, 100, 1000)))
        a = b * rng.randrange(2, 50) if sign == "/" else rng.randrange(2, rng.choice((10, 100, 100, 1000)))
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
        asked = rng.choice(_OPERATIONS[sign][1]).format(a=a, b=b)
        numbers: tuple[Any, ...] = (f"{a} {sign} {b}",) if tool.kind == _CALCULATOR else (a, b)
        arguments = dict(zip(tool.parameters, numbers, strict=True))
        result = json.dumps({"result": value}) if rng.random() < 0.2 else str(value)
        ask = self._put(rng.choice(_SUM_FORMS).replace("{x}", asked))
        return ToolTurn(ask, tool.name, arguments, result, f"The result is {value}.")

    def _put(self, text: str) -> str:
        """The same question as another user would type it."""
        draw = self._rng.random()
        if draw < 0.12:
            return text.lower()
        if draw < 0.24:
            return text.rstrip("?.")
        return f"Please tell me: {text}" if draw < 0.28 else text


def _said(turn: tuple[str, str]) -> list[Piece]:
    return [Piece("user", turn[0]), Piece("assistant", turn[1])]
