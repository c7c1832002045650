"""`prompt`, `chat` and `explain`: text in, the API's answer out."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, TextIO

import msgspec

from cluster.cli.client import ApiRequestFailed, Client
from cluster.cli.conversing import COMMANDS, Conversation, Reply, is_command
from cluster.cli.generation_commands import STRATEGIES
from cluster.cli.options import Options
from cluster.cli.rendering import renderer, written
from cluster.cli.session import Session
from cluster.cli.showing import explain_lines
from cluster.cli.typing_lines import typed_lines
from cluster.config import mode_from_environment
from protocol.errors import TandemError, UsageError, as_sentence

_SENT_AS_THEY_ARE = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "model", "strategy", "conversation",
)  # fmt: skip
# What an answer may say of itself besides what it always says.
_FURTHER = ("cached_tokens", "predicted", "total_s", "resumed", "draft", "notes")


class ReceivedAnswer(msgspec.Struct):
    """An answer as it comes in. reasoning: what was thought before it; tandem: how it was routed and how fast it was."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    tandem: dict[str, Any] | None = None

    def take(self, chunk: dict[str, Any]) -> str:
        """Take a chunk of the stream in; returns its new text."""
        self.usage = chunk.get("usage") or self.usage
        self.tandem = chunk.get("tandem") or self.tandem
        for choice in chunk.get("choices", []):
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            new: str = (choice["delta"].get("content") if "delta" in choice else choice.get("text")) or ""
            self.reasoning += choice.get("delta", {}).get("reasoning_content") or ""
            self.text += new
            return new
        return ""

    def report(self) -> dict[str, Any]:
        """The object of `prompt --json`."""
        if self.usage is None or self.tandem is None:
            raise TandemError("the answer came without its usage; is the API another program's?")
        return {
            "text": self.text,
            "token_ids": self.tandem["token_ids"],
            "strategy": self.tandem["strategy"],
            "reason": self.tandem["reason"],
            "prompt_tokens": self.usage["prompt_tokens"],
            "completion_tokens": self.usage["completion_tokens"],
            "finish_reason": self.finish_reason,
            "ttft_s": self.tandem["ttft_s"],
            "decode_tokens_per_s": self.tandem["decode_tokens_per_s"],
            "workers": self.tandem["workers"],
            **({"reasoning_content": self.reasoning} if self.reasoning else {}),
            **{name: self.tandem[name] for name in _FURTHER if name in self.tandem},
        }


def prompt(session: Session, text: str, options: Options, *, as_json: bool) -> None:
    """Stream the answer to stdout, or print one JSON object at its end."""
    mode = mode_from_environment(session.environment)
    client, status = session.reach()
    path, body = _generation(status, [{"role": "user", "content": text}], options, mode)
    answer = ReceivedAnswer()
    for new in _texts(session, client, path, body, answer):
        if not as_json:
            _write(sys.stdout, new)
    if as_json:
        print(json.dumps(answer.report(), ensure_ascii=False))
        return
    if not answer.text.endswith("\n"):
        print()
    session.terminal.aside(_summary(answer))


def explain(session: Session, text: str, options: Options, *, as_json: bool) -> None:
    """What the selector would choose for this prompt."""
    mode = mode_from_environment(session.environment)
    client, status = session.reach()
    _, body = _generation(status, [{"role": "user", "content": text}], options, mode)
    choice = client.post("/v1/explain", body)
    print(json.dumps(choice, ensure_ascii=False) if as_json else "\n".join(explain_lines(choice)))


def chat(session: Session, options: Options) -> None:
    """A conversation on the terminal, until /exit or the end of input."""
    mode = mode_from_environment(session.environment)
    client, status = session.reach()
    if not status["model"].get("has_chat_template", True):
        raise UsageError("this model has no chat template; use `./launch.sh prompt --raw` instead")
    if session.terminal.interactive:
        session.terminal.note(f"{status['model']['id']}: /help lists the commands, /exit or Ctrl-D ends it.")
    conversation = Conversation(options, lambda: [model["id"] for model in client.get("/v1/models")["data"]])
    arguments = {"/strategy": ("auto", *STRATEGIES)}
    for line in typed_lines(session.home.root / "chat_history", tuple(COMMANDS), arguments):
        question: str | None = line
        if is_command(line):
            reply = _performed(session, conversation, line)
            if reply is not None and reply.ends:
                return
            question = None if reply is None else reply.question
        if question is not None:
            body = _generation(status, conversation.asked(question), conversation.options, mode)[1]
            if (report := _chat_turn(session, client, body)) is not None:
                conversation.answered(question, report)


def _performed(session: Session, conversation: Conversation, line: str) -> Reply | None:
    """What a command gave, told where there is something to tell; None where it failed, which is told too."""
    try:
        reply = conversation.command(line)
    except TandemError as error:
        session.terminal.note(f"tandem: {as_sentence(str(error), error.param)}")
        return None
    if reply.text is not None:
        session.terminal.note(reply.text)
    return reply


def _chat_turn(session: Session, client: Client, body: dict[str, Any]) -> dict[str, Any] | None:
    """Print one answer; None when it was refused or interrupted, which leaves the conversation as it was."""
    answer, out = ReceivedAnswer(), renderer()
    try:
        written(_texts(session, client, "/v1/chat/completions", body, answer, out.pause), out)
    except KeyboardInterrupt:
        session.terminal.note("(interrupted)")
        return None
    except ApiRequestFailed as error:
        session.terminal.note(f"tandem: {as_sentence(str(error), error.param)}")
        return None
    session.terminal.aside(_summary(answer))
    return answer.report()


def _texts(
    session: Session,
    client: Client,
    path: str,
    body: dict[str, Any],
    answer: ReceivedAnswer,
    pause: Callable[[], None] = lambda: None,
) -> Iterator[str]:
    """New pieces of text as they come; closes the connection, which cancels the request, however it ends. pause: called before
    anything else is said.
    """
    streaming = {"stream": True, "stream_options": {"include_usage": True}}
    with closing(client.stream(path, body | streaming)) as chunks:
        for chunk in chunks:
            if "choices" not in chunk:
                pause()
                _show_progress(session, chunk, below=bool(answer.text) and not answer.text.endswith("\n"))
                continue
            num_thought = len(answer.reasoning)
            new = answer.take(chunk)
            if len(answer.reasoning) > num_thought and not answer.text:
                session.terminal.progress(f"thinks: {' '.join(answer.reasoning[-60:].split())}", at_once=True)
            if new:
                session.terminal.done()
                yield new
    session.terminal.done()


def _show_progress(session: Session, comment: dict[str, Any], *, below: bool) -> None:
    if "waiting" in comment:
        session.terminal.progress(f"waiting for {comment['waiting']}", below=below, at_once=True)
    else:
        processed, total = comment["prefill"]
        session.terminal.progress(f"reading the prompt: {processed} of {total} tokens", below=below)


def _generation(
    status: dict[str, Any], messages: list[dict[str, str]], options: Options, mode: str | None
) -> tuple[str, dict[str, Any]]:
    """Path and body of a request; the last message alone, without a template, for raw prompts."""
    raw = options.raw or not status["model"].get("has_chat_template", True)
    if raw and options.system is not None:
        raise UsageError("--system needs the model's chat template; put it into the prompt instead")
    told = [{"role": "system", "content": options.system}] if options.system is not None else []
    body: dict[str, Any] = {"prompt": messages[-1]["content"]} if raw else {"messages": [*told, *messages]}
    asked = msgspec.to_builtins(options)
    wanted = {name: asked[name] for name in _SENT_AS_THEY_ARE if asked[name] not in ((), [])} | {
        "use_distributed_inference": mode
    }
    body |= {name: value for name, value in wanted.items() if value is not None}
    return ("/v1/completions" if raw else "/v1/chat/completions"), body


def _summary(answer: ReceivedAnswer) -> str:
    report = answer.report()
    rate = report["decode_tokens_per_s"]
    speed = "" if rate is None else f", then {rate:.0f} tokens/s"
    return (
        f"[{report['strategy']}: {report['reason']}; first token after {report['ttft_s']:.2f} s{speed}"
        f"{_resumed_text(report.get('resumed', 0))}{_cut_text(report)}]"
    )


def _cut_text(report: dict[str, Any]) -> str:
    if report["finish_reason"] != "length":
        return ""
    return f"; cut after {report['completion_tokens']} tokens, --max-tokens says how many there may be"


def _resumed_text(times: int) -> str:
    return "" if times == 0 else f"; resumed {'once' if times == 1 else f'{times} times'}"


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()
