"""Several answers to one request: lists of prompts, `n` and `best_of`, whole and as one stream."""

import asyncio
import json

import msgspec
import pytest

from cluster.serving.requests import (
    Delta,
    Likelihood,
    Progress,
    Scored,
    TextPrompt,
    TokensPrompt,
    ToolCall,
    Waiting,
)
from protocol.errors import BadRequest, Unavailable
from tests.support.fake_service import FINISHED, ROUTED, FakeService, app_over, ask, chat, completion, sse_events


def scored(*logprobs):
    return tuple(Scored(Likelihood(7, b"t", logprob)) for logprob in logprobs)


def said(text, finish_reason="stop", num_tokens=1, **finished):
    """What a generation says that answers with that text, the likelier the shorter."""
    return (
        ROUTED,
        Delta(text=text, token_ids=(7,), scores=scored(-float(len(text)))),
        msgspec.structs.replace(FINISHED, finish_reason=finish_reason, completion_tokens=num_tokens, **finished),
    )


class SeveralService(FakeService):
    """Plays a script for each generation, by the order in which they begin; what it asks of no more is the last."""

    def __init__(self, *scripts):
        super().__init__()
        self.scripts = scripts
        self.open = set()
        self.all_closed = asyncio.Event()

    async def generate(self, request):
        number = len(self.requests)
        self.requests.append(request)
        self.open.add(number)
        try:
            for item in self.scripts[min(number, len(self.scripts) - 1)]:
                if isinstance(item, BaseException):
                    raise item
                if item is ...:
                    self.waiting.set()
                    await asyncio.Event().wait()
                elif isinstance(item, asyncio.Event):
                    await item.wait()
                elif callable(item):
                    item()
                else:
                    yield item
        finally:
            self.open.discard(number)
            if not self.open:
                self.all_closed.set()


def texts(response):
    return [(choice["index"], choice["text"], choice["finish_reason"]) for choice in response.json()["choices"]]


def test_each_copy_is_a_choice_and_the_prompt_is_counted_once():
    service = SeveralService(said("a"), said("bc", "length", 5, notes=("it was cut",)), said("d"))
    body = chat(service, n=3).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in body["choices"]] == ["a", "bc", "d"]
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", "length", "stop"]
    used = body["usage"]
    assert (used["prompt_tokens"], used["completion_tokens"], used["total_tokens"]) == (7, 7, 14)
    assert body["tandem"]["notes"] == ["The seed had no effect.", "It was cut."]
    assert len({msgspec.json.encode(request.prompt) for request in service.requests}) == 1


def test_prompts_of_a_list_are_answered_in_their_order():
    service = SeveralService(said("a"), said("b"), said("c"))
    response = completion(service, prompt=["x", "y", "z"])
    assert texts(response) == [(0, "a", "stop"), (1, "b", "stop"), (2, "c", "stop")]
    assert [request.prompt for request in service.requests] == [TextPrompt("x"), TextPrompt("y"), TextPrompt("z")]
    assert response.json()["usage"]["prompt_tokens"] == 21
    assert response.headers["x-tandem-strategy"] == ROUTED.strategy


def test_lists_of_token_ids_are_prompts_and_text_may_be_among_them():
    service = SeveralService(said("a"))
    assert completion(service, prompt=[[1, 2], [3], "x"]).status_code == 200
    assert [request.prompt for request in service.requests] == [
        TokensPrompt((1, 2)),
        TokensPrompt((3,)),
        TextPrompt("x"),
    ]


class ByRequest(FakeService):
    """Answers with the prompt and its seed."""

    async def generate(self, request):
        self.requests.append(request)
        for event in said(f"{request.prompt.text}{request.sampling.seed}"):
            yield event


def test_choices_stand_by_prompt_and_seeds_count_up():
    response = completion(ByRequest(), prompt=["x", "y"], n=2, seed=5)
    assert [text for _, text, _ in texts(response)] == ["x5", "x6", "y5", "y6"]
    assert [text for _, text, _ in texts(completion(ByRequest(), prompt=["x", "y"], n=2))] == ["xNone"] * 2 + [
        "yNone"
    ] * 2
    largest = completion(ByRequest(), prompt="x", n=2, seed=2**64 - 1)
    assert [text for _, text, _ in texts(largest)] == [f"x{2**64 - 1}", "x0"]


def test_null_is_one_answer():
    for fields in ({"n": None, "best_of": None, "logprobs": None}, {"n": 1, "best_of": 1}):
        service = FakeService()
        assert len(completion(service, **fields).json()["choices"]) == len(service.requests) == 1
    service = FakeService()
    assert len(chat(service, n=None, top_logprobs=None).json()["choices"]) == len(service.requests) == 1


def test_copies_begin_once_the_first_says_something():
    async def scenario():
        halted, go_on, had_begun = asyncio.Event(), asyncio.Event(), []
        first = [ROUTED, Progress(processed=1, total=2), halted.set, go_on, *said("a")[1:]]
        service = SeveralService(first, [lambda: had_begun.append(go_on.is_set()), *said("b")])
        task = asyncio.create_task(answered(service, {"prompt": "x", "n": 3}))
        await halted.wait()
        go_on.set()
        return await task, had_begun

    (_, body), had_begun = asyncio.run(scenario())
    assert had_begun == [True, True]
    assert [choice["text"] for choice in json.loads(body)["choices"]] == ["a", "b", "b"]


async def answered(service, body, *, left=None):
    """The status and the body of what the app answers, in this loop; `left` is set when the client goes."""
    sent = []
    content = json.dumps(body).encode()

    async def receive():
        if not sent_body:
            sent_body.append(True)
            return {"type": "http.request", "body": content, "more_body": False}
        await (left or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    sent_body = []
    headers = [(b"host", b"localhost"), (b"content-length", str(len(content)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
    await app_over(service)(scope, receive, send)
    started = [message["status"] for message in sent if message["type"] == "http.response.start"]
    return started, b"".join(message.get("body", b"") for message in sent)


def test_stream_has_each_choice_s_pieces_as_they_come_and_one_end():
    async def scenario():
        second_said, first_said = asyncio.Event(), asyncio.Event()
        first = [
            ROUTED,
            Delta(text="a", token_ids=(1,)),
            second_said,
            Delta(text="b", token_ids=(2,)),
            first_said.set,
            FINISHED,
        ]
        second = [
            ROUTED,
            Delta(text="c", token_ids=(3,)),
            second_said.set,
            first_said,
            Delta(text="d", token_ids=(4,)),
            FINISHED,
        ]
        service = SeveralService(first, second)
        options = {"include_usage": True, "continuous_usage_stats": True}
        return await answered(service, {"prompt": ["x", "y"], "stream": True, "stream_options": options})

    _, body = asyncio.run(scenario())
    *events, last = sse_events(body.decode())
    assert body.endswith(b"data: [DONE]\n\n")
    assert body.count(b"[DONE]") == 1
    pieces = [(event["choices"][0]["index"], event["choices"][0]["text"]) for event in events]
    assert [piece for piece in pieces if piece[1]] == [(0, "a"), (1, "c"), (0, "b"), (1, "d")]
    ended = [event["choices"][0]["index"] for event in events if event["choices"][0]["finish_reason"]]
    assert sorted(ended) == [0, 1]
    assert {event["id"] for event in events} == {"cmpl-r1"}
    counted = [event["usage"]["completion_tokens"] for event in events if event["usage"]]
    assert counted == [1, 2, 3, 4]
    assert (last["choices"], last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == ([], 14, 6)
    assert last["tandem"]["strategy"] == ROUTED.strategy


def test_streamed_chats_each_begin_with_the_role_and_number_their_own_calls():
    script = (ROUTED, Delta(text="", calls=(ToolCall("c", "clock", "{}"),), token_ids=(7,)), FINISHED)
    events = sse_events(chat(SeveralService(script), n=2, stream=True).text)
    for index in (0, 1):
        (role, *pieces) = [event["choices"][0] for event in events if event["choices"][0]["index"] == index]
        assert role["delta"] == {"role": "assistant", "content": ""}
        assert [call["index"] for piece in pieces for call in piece["delta"].get("tool_calls", ())] == [0, 0]
        assert pieces[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_generation_that_fails_ends_the_request_and_the_others(stream):
    endless = (ROUTED, Delta(text="a", token_ids=(1,)), ...)
    service = SeveralService(endless, (ROUTED, Unavailable("lost")))
    response = completion(service, prompt=["x", "y"], stream=stream)
    if stream:
        assert response.status_code == 200
        assert sse_events(response.text)[-1]["error"]["message"] == "Lost."
        assert "[DONE]" not in response.text
    else:
        assert (response.status_code, response.json()["error"]["message"]) == (503, "Lost.")
    assert service.open == set()


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_that_is_refused_has_its_status(stream):
    response = completion(SeveralService((BadRequest("no", param="prompt"),)), prompt=["x", "y"], stream=stream)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


def test_generation_without_an_end_is_an_error():
    service = SeveralService(said("a"), (ROUTED, Delta(text="b", token_ids=(1,))))
    assert completion(service, prompt=["x", "y"]).status_code == 500
    assert service.open == set()


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_ends_all_of_them(stream):
    async def scenario():
        service, left = SeveralService((ROUTED, Delta(text="a", token_ids=(1,)), ...)), asyncio.Event()
        task = asyncio.create_task(answered(service, {"prompt": ["x", "y"], "n": 2, "stream": stream}, left=left))
        while len(service.open) < 4:
            await service.waiting.wait()
            await asyncio.sleep(0)
        left.set()
        await asyncio.wait_for(task, 5)
        return service

    assert asyncio.run(scenario()).open == set()


def test_of_several_that_wait_one_says_so():
    wait = Waiting(workers=("beta",))
    both_wait = asyncio.Event()
    service = SeveralService((ROUTED, wait, both_wait, *said("a")[1:]), (ROUTED, wait, both_wait.set, *said("b")[1:]))
    text = completion(service, prompt=["x", "y"], stream=True).text
    assert text.count(": waiting for beta\n\n") == 1


def test_of_the_best_the_likeliest_are_given():
    service = SeveralService(said("long"), said("x"), said("mid"), said("no"))
    response = completion(service, n=2, best_of=4)
    assert [text for _, text, _ in texts(response)] == ["x", "no"]
    assert [choice["logprobs"] for choice in response.json()["choices"]] == [None, None]
    assert [request.sampling.logprobs for request in service.requests] == [0] * 4
    assert response.json()["usage"]["completion_tokens"] == 4
    of_each = SeveralService(said("aa"), said("bb"), said("c"), said("d"))
    both = texts(completion(of_each, prompt=["x", "y"], best_of=2))
    assert [index for index, _, _ in both] == [0, 1]
    assert len(of_each.requests) == 4


def test_of_the_best_none_is_likelier_for_being_long():
    def script(text, *logprobs):
        return (ROUTED, Delta(text=text, token_ids=(7,), scores=scored(*logprobs)), FINISHED)

    service = SeveralService(script("empty"), script("sum", -1.5), script("mean", -1.0, -1.0, -1.0))
    assert [text for _, text, _ in texts(completion(service, best_of=3))] == ["mean"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"n": 2, "best_of": 2, "stream": True}, "best_of"),
        ({"n": 129}, "n"),
        ({"best_of": 0}, "best_of"),
        ({"prompt": ["x"] * 129}, "prompt"),
        ({"prompt": ["x"] * 2, "n": 9}, "n"),
        ({"prompt": ["x"] * 17, "n": 2}, "n"),
        ({"prompt": ["x"] * 17, "best_of": 2}, "best_of"),
        ({"prompt": ["x", 5]}, "prompt[1]"),
        ({"prompt": [[1], [2, -1]]}, "prompt[1][1]"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields, param):
    service = FakeService()
    response = completion(service, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert service.requests == []


@pytest.mark.parametrize("fields", [{"n": 128}, {"prompt": ["x"] * 128}, {"prompt": ["x"] * 16, "n": 8}])
def test_as_many_as_may_be_are_given(fields):
    assert len(completion(SeveralService(said("a")), **fields).json()["choices"]) == 128


def test_choice_of_fewer_than_are_wanted_has_no_effect():
    response = completion(SeveralService(said("a")), n=3, best_of=2)
    assert len(response.json()["choices"]) == 3
    assert "The field best_of has no effect here." in response.json()["tandem"]["notes"]


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages", "/api/chat", "/api/generate"])
def test_other_surfaces_give_one_answer(path):
    said_in = {"/v1/responses": "input", "/api/generate": "prompt"}
    asked = {said_in[path]: "x"} if path in said_in else {"messages": [{"role": "user", "content": "x"}]}
    response = ask(FakeService(), "POST", path, asked | {"max_tokens": 5, "n": 2})
    assert response.status_code == 400
    assert "several answers" in response.text


@pytest.mark.parametrize("path", ["/v1/explain", "/tokenize"])
def test_what_is_said_of_one_prompt_is_not_said_of_several(path):
    response = ask(FakeService(), "POST", path, {"prompt": ["x", "y"]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


def test_all_that_is_known_of_who_asks_reaches_every_generation():
    service = SeveralService(said("a"))
    completion(service, prompt=["x", "y"], n=2, conversation="c", app={"scope_by_key": True})
    assert {(request.conversation, bool(request.scope), bool(request.client)) for request in service.requests} == {
        ("c", True, True)
    }
