"""What an answer's text is made of: what is said, what was thought before, and calls of tools.

Told apart by mlx-lm's own rules for the model's family: the marks that its tokenizer and chat template have. Knows nothing of HTTP.
"""

import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
from mlx_lm.generate import TextStateMachine, make_text_state_machine
from mlx_lm.tokenizer_utils import TokenizerWrapper

from cluster.serving.requests import ToolCall

log = logging.getLogger(__name__)

SAID, THOUGHT, CALLED = "normal", "reasoning", "tool"

Tool = Mapping[str, Any]
ParseCall = Callable[[str, Sequence[Tool]], Any]


class AnswerPart(msgspec.Struct, frozen=True):
    """A piece of an answer: text that is said, or thought, or calls; one of them."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


class Parts:
    """One answer, as its text comes. machine: mlx-lm's, begun in the state `begins`; tools: that may be called, at most once
    where `one_call`. reason: why an answer with calls ended.
    """

    reason = "tool_calls"

    def __init__(
        self,
        machine: TextStateMachine,
        begins: str,
        tokenizer: TokenizerWrapper,
        tools: Sequence[Tool],
        *,
        one_call: bool = False,
    ):
        self._state = machine.make_state(begins)
        self._most_calls = 1 if one_call else None
        self._marks = tokenizer.tool_call_start or "", tokenizer.tool_call_end or ""
        self._parse: ParseCall | None = tokenizer.tool_parser if tools else None
        self._tools = tools
        self._called: list[str] = []
        self.num_calls = 0

    def __repr__(self) -> str:
        return f"Parts({self._state[0]}, {self.num_calls} calls)"

    def push(self, text: str) -> list[AnswerPart]:
        """What more of the text settles; a call is one once it is complete."""
        self._state, segments = TextStateMachine.split(self._state, text)
        return self._taken(segments)

    def finish(self) -> list[AnswerPart]:
        """What is left, once no more text comes."""
        self._state, rest, state = TextStateMachine.flush(self._state)
        return [*self._taken([(state, rest)]), *self._end_call(is_cut=True)]

    def _taken(self, segments: Sequence[tuple[str | None, str]]) -> list[AnswerPart]:
        parts: list[AnswerPart] = []
        for state, text in segments:
            if state == CALLED:
                self._called.append(text)
                continue
            parts += self._end_call(is_cut=False)
            if text:
                parts.append(AnswerPart(reasoning=text) if state == THOUGHT else AnswerPart(text=text))
        return parts

    def _end_call(self, *, is_cut: bool) -> list[AnswerPart]:
        """What lies between the marks as calls; as the text that it is where it is none."""
        if not self._called:
            return []
        text, self._called = "".join(self._called), []
        if self._parse is None:
            return [AnswerPart(text=text)] if text else []
        try:
            calls = tuple(map(_call, _as_list(self._parse(text, self._tools))))
        except Exception as error:  # noqa: BLE001  mlx-lm's parsers raise whatever Python does for what a model makes up
            log.info("a call of a tool is taken as text: %s", error)
            start, end = self._marks
            return [AnswerPart(text=start + text + ("" if is_cut else end))]
        calls = calls[: None if self._most_calls is None else self._most_calls - self.num_calls]
        self.num_calls += len(calls)
        return [AnswerPart(calls=calls)] if calls else []


def _as_list(parsed: Any) -> list[Any]:
    return parsed if isinstance(parsed, list) else [parsed]


def _call(parsed: Mapping[str, Any]) -> ToolCall:
    arguments = parsed["arguments"]
    return ToolCall(
        id=_sendable(parsed.get("id") or f"call_{secrets.token_hex(12)}"),
        name=_sendable(parsed["name"]),
        arguments=_sendable(arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)),
    )


def _sendable(text: Any) -> str:
    """Without the halves of characters that JSON can name and UTF-8 cannot hold."""
    return str(text).encode("utf-8", "replace").decode()


def parts_of(
    tokenizer: TokenizerWrapper, tokens: Sequence[int], tools: Sequence[Tool], *, one_call: bool
) -> Parts | None:
    """How an answer to a chat's prompt of these tokens is taken apart; None where this model's answers are only said."""
    told_apart = SimpleNamespace(
        has_thinking=tokenizer.has_thinking,
        think_start=tokenizer.think_start,
        think_end=tokenizer.think_end,
        has_tool_calling=tokenizer.has_tool_calling and bool(tools),
        tool_call_start=tokenizer.tool_call_start,
        tool_call_end=tokenizer.tool_call_end,
        structural_markers=tokenizer.structural_markers,
        response_transitions=tokenizer.response_transitions,
    )
    marks = (told_apart.structural_markers, told_apart.response_transitions)
    if not (told_apart.has_thinking or told_apart.has_tool_calling or any(marks)):
        return None
    begins = begins_in(tokenizer, tokens)
    return Parts(make_text_state_machine(told_apart), begins, tokenizer, tools, one_call=one_call)


def begins_in(tokenizer: TokenizerWrapper, prompt: Sequence[int]) -> str:
    """In which state the answer to a prompt begins: thinking where that ends with the beginning of a thought."""
    if tokenizer.response_initial_state:
        return str(tokenizer.response_initial_state)
    # Most prompts hold no such mark; mlx-lm's search would look at each token of a long one, on the event loop.
    if not tokenizer.has_thinking or tokenizer.think_start_tokens[0] not in prompt:
        return SAID
    opened = tokenizer.rfind_think_start(prompt)
    return THOUGHT if opened >= 0 and tokenizer.rfind_think_end(prompt, start=opened) < 0 else SAID
