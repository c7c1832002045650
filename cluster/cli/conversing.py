"""A conversation in the terminal: what was said, what is asked of the answers, and the commands that change either.

Knows files, which conversations are saved to, and nothing of the API, keys or screens.
"""

import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cluster.cli.generation_commands import STRATEGIES
from cluster.cli.options import Options
from protocol.errors import TandemError, UsageError

Message = dict[str, str]
_ROLES = ("system", "user", "assistant")


class Saved(msgspec.Struct):
    """A conversation in a file."""

    messages: list[Message]
    system: str | None = None


class Reply(msgspec.Struct, frozen=True):
    """What a command gives: something to say, or a question to ask (again); neither ends the conversation."""

    text: str | None = None
    question: str | None = None

    @property
    def ends(self) -> bool:
        return self.text is None and self.question is None


class Conversation:
    """See the module. names: of models that are served."""

    def __init__(self, options: Options, names: Callable[[], Sequence[str]] = tuple):
        self._names = names
        self._totals = {"answers": 0, "tokens": 0}
        self._last: dict[str, Any] | None = None
        self.messages: list[Message] = []
        self.options = options
        self._begin_anew()

    def __repr__(self) -> str:
        return f"Conversation({len(self.messages)} messages)"

    def _begin_anew(self) -> None:
        self.messages = []
        self.options = msgspec.structs.replace(self.options, conversation=f"chat-{secrets.token_hex(8)}")

    def asked(self, question: str) -> list[Message]:
        """Everything that an answer to the question is made from."""
        return [*self.messages, {"role": "user", "content": question}]

    def answered(self, question: str, report: dict[str, Any]) -> None:
        """The question was answered; `report` is the object of `prompt --json`."""
        self.messages = [*self.asked(question), {"role": "assistant", "content": report["text"]}]
        self._last = report
        self._totals["answers"] += 1
        self._totals["tokens"] += report["completion_tokens"]

    # --- commands

    def command(self, line: str) -> Reply:
        """Perform a line that begins with a slash. Raises TandemError where it cannot be done."""
        name, _, rest = line.partition(" ")
        found = COMMANDS.get(name)
        if found is None:
            raise UsageError(f"there is no command {name}; /help lists them")
        return found[0](self, rest.strip())

    def choose_model(self, name: str) -> Reply:
        if not name:
            return Reply(
                f"models: {', '.join(self._names())}; asked for: {self.options.model or 'the one that is loaded'}"
            )
        self.options = msgspec.structs.replace(self.options, model=name)
        return Reply(f"asks for {name} from now on")

    def choose_strategy(self, name: str) -> Reply:
        if not name:
            return Reply(f"strategies: auto, {', '.join(STRATEGIES)}; asked for: {self.options.strategy or 'auto'}")
        if name not in ("auto", *STRATEGIES):
            raise UsageError(f"there is no strategy {name!r}; there are: auto, {', '.join(STRATEGIES)}")
        self.options = msgspec.structs.replace(self.options, strategy=None if name == "auto" else name)
        return Reply(
            f"answers by {name} from now on" if name != "auto" else "each answer takes the strategy that suits it"
        )

    def tell(self, text: str) -> Reply:
        self.options = msgspec.structs.replace(self.options, system=text or None)
        return Reply(
            "the model is told that before all else" if text else "the model is told nothing before your words"
        )

    def forget(self, _: str) -> Reply:
        self._begin_anew()
        return Reply("the conversation is forgotten")

    def ask_again(self, _: str) -> Reply:
        if len(self.messages) < 2:
            raise UsageError("nothing was asked yet")
        question = self.messages[-2]["content"]
        self.messages = self.messages[:-2]
        return Reply(question=question)

    def save(self, name: str) -> Reply:
        path = _path(name)
        saved = Saved(messages=self.messages, system=self.options.system)
        try:
            path.write_bytes(msgspec.json.format(msgspec.json.encode(saved)) + b"\n")
        except OSError as error:
            raise TandemError(f"{path} cannot be written: {error.strerror}") from None
        return Reply(f"{len(self.messages)} messages are in {path}")

    def load(self, name: str) -> Reply:
        path = _path(name)
        try:
            saved = msgspec.json.decode(path.read_bytes(), type=Saved)
        except OSError as error:
            raise TandemError(f"{path} cannot be read: {error.strerror}") from None
        except msgspec.DecodeError as error:
            raise TandemError(f"{path} is no conversation that /save wrote: {error}") from None
        if any(set(message) != {"role", "content"} or message["role"] not in _ROLES for message in saved.messages):
            raise TandemError(f"{path} is no conversation that /save wrote: its messages need a role and content")
        self._begin_anew()
        self.messages = saved.messages
        self.options = msgspec.structs.replace(self.options, system=saved.system)
        return Reply(f"goes on behind {len(self.messages)} messages of {path}")

    def show_figures(self, _: str) -> Reply:
        if self._last is None:
            return Reply("nothing was answered yet")
        last = {
            key: value for key, value in self._last.items() if key not in ("text", "token_ids", "reasoning_content")
        }
        lines = [f"{key:<20} {_shown(value)}" for key, value in last.items()]
        return Reply("\n".join([*lines, f"{self._totals['answers']} answers, {self._totals['tokens']} tokens in all"]))

    def show_commands(self, _: str) -> Reply:
        return Reply("\n".join(f"{name:<18} {text}" for name, (_, text) in COMMANDS.items()))

    def end(self, _: str) -> Reply:
        return Reply()


def is_command(line: str) -> bool:
    """Whether a line is one, right or wrong; what only begins with a path is none."""
    word = line.partition(" ")[0]
    return word.startswith("/") and word[1:].isalpha()


def _path(name: str) -> Path:
    if not name:
        raise UsageError("name a file, as in /save talk.json")
    return Path(name).expanduser()


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


COMMANDS: dict[str, tuple[Callable[[Conversation, str], Reply], str]] = {
    "/help": (Conversation.show_commands, "this list"),
    "/model": (Conversation.choose_model, "NAME: which model to ask; alone, which there are"),
    "/strategy": (
        Conversation.choose_strategy,
        "NAME or auto: how the next answers are computed; alone, which there are",
    ),
    "/system": (Conversation.tell, "TEXT: what the model is told before all else; alone, nothing"),
    "/retry": (Conversation.ask_again, "ask the last question again"),
    "/stats": (Conversation.show_figures, "figures of the last answer, and of all"),
    "/save": (Conversation.save, "FILE: write the conversation down"),
    "/load": (Conversation.load, "FILE: go on with one that was"),
    "/clear": (Conversation.forget, "forget the conversation"),
    "/exit": (Conversation.end, "end; so does Ctrl-D"),
}
