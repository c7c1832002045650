"""The parts of an answer that is held to a grammar: what is thought before, and what is said or called.

Where a grammar begins is known, and what it lets through; so nothing in it is taken for a mark of the model's own. Knows nothing of
HTTP.
"""

import secrets

import msgspec

from cluster.serving.grammars import CALL_ENDS, GrammarRefused, MakeGrammar, call_begins
from cluster.serving.parts import AnswerPart
from cluster.serving.requests import ChatPrompt, ForcedCall, GenerationRequest, ToolCall
from protocol.errors import BadRequest
from protocol.values import Grammar


class HeldParts:
    """One answer, as its text comes; like `Parts`. think_end: the mark behind which the grammar begins, empty where it begins at
    once; forced: the call that it is, None for text. reason: why an answer with calls ended.
    """

    def __init__(self, think_end: str, forced: ForcedCall | None):
        self._think_end = think_end
        self._forced = forced
        self._held = ""
        self.num_calls = 0
        self.reason = "tool_calls" if forced is None else forced.reason

    def __repr__(self) -> str:
        return f"HeldParts({'thinks' if self._think_end else 'answers'}, {self.num_calls} calls)"

    def push(self, text: str) -> list[AnswerPart]:
        """What more of the text settles."""
        self._held += text
        if not self._think_end:
            return self._said()
        thought, mark, rest = self._held.partition(self._think_end)
        if mark:
            self._think_end, self._held = "", rest
            return [*([AnswerPart(reasoning=thought)] if thought else []), *self._said()]
        sure = len(thought) - _overlap(thought, self._think_end)
        self._held = thought[sure:]
        return [AnswerPart(reasoning=thought[:sure])] if sure else []

    def finish(self) -> list[AnswerPart]:
        """What is left, once no more text comes."""
        text, self._held = self._held, ""
        if not text:
            return []
        if self._think_end:
            return [AnswerPart(reasoning=text)]
        assert self._forced is not None, "what is said is not held"
        call = _call(text, self._forced)
        if call is None:
            return []
        self.num_calls = 1
        return [AnswerPart(calls=(call,))]

    def _said(self) -> list[AnswerPart]:
        """Text at once, a call at the end."""
        if self._forced is not None or not self._held:
            return []
        text, self._held = self._held, ""
        return [AnswerPart(text=text)]


def held_parts(request: GenerationRequest, think_end: str | None) -> HeldParts | None:
    """Of an answer that is held to a grammar; None where all of it is said."""
    grammar, prompt = request.sampling.grammar, request.prompt
    forced = prompt.forced if isinstance(prompt, ChatPrompt) else None
    mark = think_end or "" if grammar is not None and grammar.after else ""
    return HeldParts(mark, forced) if mark or forced else None


def constrained(request: GenerationRequest, make_grammar: MakeGrammar, after: tuple[int, ...]) -> GenerationRequest:
    """With the grammar of what its answer has to be, where it has to be something. after: as of `Grammar`.

    Raises:
        BadRequest: that is not supported, or not with this model.
    """
    structure = request.structure
    if structure is None:
        return request
    try:
        grammar = Grammar(text=make_grammar(structure), after=after)
    except GrammarRefused as error:
        raise BadRequest(f"{structure.field} cannot be followed: {error}", param=structure.field) from error
    return msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, grammar=grammar))


def _call(text: str, forced: ForcedCall) -> ToolCall | None:
    """None where it was cut before it says of what."""
    for name in forced.names:
        if text.startswith(begins := call_begins(name)):
            arguments = text.removeprefix(begins)
            if _is_whole(text):
                arguments = arguments.removesuffix(CALL_ENDS)
            return ToolCall(f"call_{secrets.token_hex(12)}", name, arguments)
    return None


def _is_whole(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except msgspec.DecodeError:
        return False
    return True


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-size:])), 0)
