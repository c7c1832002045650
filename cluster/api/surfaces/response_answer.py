"""The answer to a request for a response: the response object, and the events that it grows by.

A response has a list of output items: what was thought, what is said, and calls. In a stream each is added, grows and is
done, one after the other.
"""

from collections.abc import Mapping
from typing import Any

from cluster.api.accounts import accounts
from cluster.api.answered import KeptAnswer, Shelf
from cluster.api.events import as_json, event
from cluster.api.surface import ApiRequest
from cluster.api.surfaces.response_items import Item, by_id, new_id, output_text
from cluster.serving.requests import Delta, Finished, Routed, ToolCall
from protocol.errors import ApiError, as_sentence

SAID, THOUGHT = "message", "reasoning"


class ResponseRequest(ApiRequest, frozen=True, kw_only=True):
    """A request for a response. echoed: what its answer says of it; inputs: the items of its conversation as they are kept, by id;
    shelf: where its answer is kept, None where it is not.
    """

    echoed: dict[str, Any]
    inputs: Mapping[str, bytes]
    shelf: Shelf | None = None


class ResponseAnswer:
    """One answer; see `AnswerFormat`."""

    def __init__(self, request: ResponseRequest, routed: Routed, *, model: str, created: int) -> None:
        self._request, self._routed = request, routed
        self._head = response_head(model, created) | request.echoed
        self._num_events = 0
        self._output: list[Item] = []  # what is done
        self._growing: _Growing | None = None
        self._blank = ""  # said, but nothing to see: the model's way to a call, or the beginning of what it says

    def opening(self) -> bytes:
        return self._event("response.created", response=self._head) + self.going_on()

    def going_on(self) -> bytes:
        """That there is more to come."""
        return self._event("response.in_progress", response=self._head)

    def text(self, text: str) -> bytes:
        """See `AnswerFormat`."""
        return self._said(text, {})

    def counted(self, text: str, num_tokens: int) -> bytes:
        """See `AnswerFormat`."""
        return self._said(text, {"usage": _usage(self._routed.prompt_tokens, num_tokens, 0)})

    def beside(self, delta: Delta) -> bytes:
        """What is thought, and calls."""
        if delta.reasoning:
            return self._turned_to(THOUGHT) + self._grown(delta.reasoning, {})
        self._blank = ""
        return self._done() + b"".join(map(self._called, delta.calls))

    def closing(self, finished: Finished) -> bytes:
        """The end of the last item, and the whole response."""
        last = b""
        if self._blank and not any(item["type"] == "function_call" for item in self._output):
            last += self._turned_to(SAID) + self._grown(self._blank, {})
        elif self._growing is None and not self._output:
            last += self._turned_to(SAID)
        last += self._done(_status(finished))
        response = self._finished(finished, self._output)
        return last + self._event(f"response.{response['status']}", response=response)

    def failed(self, error: ApiError) -> bytes:
        """How a stream ends that cannot go on."""
        failure = {"status": "failed", "error": _error(error), "output": self._output}
        return self._event("response.failed", response=self._head | failure)

    def whole(self, answer: Delta, finished: Finished) -> bytes:
        output: list[Item] = [_thought(new_id("rs"), answer.reasoning)] if answer.reasoning else []
        if answer.text.strip() or not (answer.calls or (output and not answer.text)):
            status = "completed" if answer.calls else _status(finished)
            output.append(_message(new_id("msg"), answer.text, status))
        output += [_call(new_id("fc"), call) for call in answer.calls]
        return as_json(self._finished(finished, output))

    def _said(self, text: str, more: dict[str, Any]) -> bytes:
        if self._growing is not None and self._growing.kind == SAID:
            return self._grown(text, more)
        self._blank += text
        if not self._blank.strip():
            return b""
        text, self._blank = self._blank, ""
        return self._turned_to(SAID) + self._grown(text, more)

    def _turned_to(self, kind: str) -> bytes:
        """The events until an item of that kind grows."""
        if self._growing is not None and self._growing.kind == kind:
            return b""
        ended = self._done()
        growing = self._growing = _Growing(kind, len(self._output))
        added = self._event("response.output_item.added", output_index=growing.place, item=growing.begun())
        return ended + added + self._event("response.content_part.added", **growing.where, part=growing.part(""))

    def _grown(self, text: str, more: dict[str, Any]) -> bytes:
        growing = self._growing
        assert growing is not None
        growing.pieces.append(text)
        return self._event(f"response.{growing.content}.delta", **growing.where, delta=text, **growing.extras, **more)

    def _done(self, status: str = "completed") -> bytes:
        """The end of the item that grows, if any does."""
        growing, self._growing = self._growing, None
        if growing is None:
            return b""
        text = "".join(growing.pieces)
        item = _message(growing.id, text, status) if growing.kind == SAID else _thought(growing.id, text)
        self._output.append(item)
        return (
            self._event(f"response.{growing.content}.done", **growing.where, text=text, **growing.extras)
            + self._event("response.content_part.done", **growing.where, part=growing.part(text))
            + self._event("response.output_item.done", output_index=growing.place, item=item)
        )

    def _called(self, call: ToolCall) -> bytes:
        item = _call(new_id("fc"), call)
        begun = item | {"arguments": "", "status": "in_progress"}
        place = len(self._output)
        where = {"item_id": item["id"], "output_index": place}
        self._output.append(item)
        arguments = "response.function_call_arguments"
        return (
            self._event("response.output_item.added", output_index=place, item=begun)
            + self._event(f"{arguments}.delta", **where, delta=call.arguments)
            + self._event(f"{arguments}.done", **where, name=call.name, arguments=call.arguments)
            + self._event("response.output_item.done", output_index=place, item=item)
        )

    def _finished(self, finished: Finished, output: list[Item]) -> dict[str, Any]:
        """The response object; it is kept where that is asked for."""
        status = _status(finished)
        said = accounts(self._request, self._routed, finished)
        response = self._head | {
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": output,
            "usage": _usage(finished.prompt_tokens, finished.completion_tokens, finished.cached_tokens),
            "tandem": said["tandem"],
        }
        if self._request.shelf is not None:
            kept = KeptAnswer(as_json(response), self._request.inputs, by_id({}, output))
            self._request.shelf.keep(response["id"], kept)
        return response

    def _event(self, kind: str, **said: Any) -> bytes:
        number, self._num_events = self._num_events, self._num_events + 1
        return event({"type": kind, "sequence_number": number, **said}, kind)


class _Growing:
    """The output item that a stream is at. content: what its events call its text."""

    def __init__(self, kind: str, place: int) -> None:
        self.kind, self.place = kind, place
        self.id = new_id("msg" if kind == SAID else "rs")
        self.content = "output_text" if kind == SAID else "reasoning_text"
        self.where = {"item_id": self.id, "output_index": place, "content_index": 0}
        self.extras: dict[str, Any] = {"logprobs": []} if kind == SAID else {}
        self.pieces: list[str] = []

    def begun(self) -> Item:
        """The item before anything of it is there."""
        item = _message(self.id, "", "in_progress") if self.kind == SAID else _thought(self.id, "")
        return item | {"content": []}

    def part(self, text: str) -> dict[str, Any]:
        """What its text is a part of."""
        return output_text(text) if self.kind == SAID else {"type": "reasoning_text", "text": text}


def response_head(model: str, created: int) -> dict[str, Any]:
    """A response that has begun, whatever was asked."""
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
        # What clients read of every response; a request's own say goes over it.
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def failed_early(error: ApiError, created: int) -> bytes:
    """How a stream ends of which it is not yet known how it will run."""
    head = response_head("", created)
    failed = head | {"status": "failed", "error": _error(error)}
    pairs = (("response.created", head), ("response.failed", failed))
    return b"".join(
        event({"type": kind, "sequence_number": number, "response": response}, kind)
        for number, (kind, response) in enumerate(pairs)
    )


def _error(error: ApiError) -> dict[str, Any]:
    return {"code": error.code or error.error_type, "message": as_sentence(str(error), error.param)}


def _status(finished: Finished) -> str:
    return "incomplete" if finished.finish_reason == "length" else "completed"


def _message(item_id: str, text: str, status: str) -> Item:
    part = output_text(text)
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": [part]}


def _thought(item_id: str, text: str) -> Item:
    content = [{"type": "reasoning_text", "text": text}]
    return {"id": item_id, "type": "reasoning", "summary": [], "content": content}


def _call(item_id: str, call: ToolCall) -> Item:
    called = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
    return {"id": item_id, "type": "function_call", "status": "completed", **called}


def _usage(input_tokens: int, output_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """Tokens, in this API's words. What was thought is not counted apart."""
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached_tokens},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input_tokens + output_tokens,
    }
